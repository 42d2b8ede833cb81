#!/bin/sh
# ResNet-50 at the paper's nominal ratio of 38. The ratio fixes density x bits; at 3 bits, as for AlexNet, the density is 28.1%.
# Not run in full.
exec "$(dirname "$0")/imagenet.sh" torchvision:resnet50 IMAGENET1K_V1 0.719 3

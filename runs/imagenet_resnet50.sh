#!/bin/sh
# ResNet-50 at the paper's nominal ratio of 38. What it fixes is density x bits; 3 bits, as AlexNet's, leave 28.1%.
# Not run here.
exec "$(dirname "$0")/imagenet.sh" torchvision:resnet50 IMAGENET1K_V1 0.719 3

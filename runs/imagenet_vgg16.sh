#!/bin/sh
# VGG-16 at the paper's nominal ratio of 196. The ratio fixes density x bits; at 3 bits, as for AlexNet, the density is 5.44%.
# Not run in full.
exec "$(dirname "$0")/imagenet.sh" torchvision:vgg16 IMAGENET1K_V1 0.9456 3

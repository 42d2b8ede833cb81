#!/bin/sh
# VGG-16 at the paper's nominal ratio of 196. What it fixes is density x bits; 3 bits, as AlexNet's, leave 5.44%.
# Not run here.
exec "$(dirname "$0")/imagenet.sh" torchvision:vgg16 IMAGENET1K_V1 0.9456 3

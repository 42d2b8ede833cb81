#!/bin/sh
# MobileNet-V1 at the paper's nominal ratio of 23. What it fixes is density x bits; 3 bits, as AlexNet's, leave 46.4%.
# Not run here.
exec "$(dirname "$0")/imagenet.sh" timm:mobilenetv1_100 pretrained 0.536 3

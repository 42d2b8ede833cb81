#!/bin/sh
# MobileNet-V1 at the paper's nominal ratio of 23. The ratio fixes density x bits; at 3 bits, as for AlexNet, the density is 46.4%.
# Not run in full.
exec "$(dirname "$0")/imagenet.sh" timm:mobilenetv1_100 pretrained 0.536 3

#!/bin/sh
# AlexNet at the paper's nominal ratio of 139: 92.3% zeros and 2.99 bits, 32 / (0.077 x 2.99) = 139.
# Not run in full.
exec "$(dirname "$0")/imagenet.sh" torchvision:alexnet IMAGENET1K_V1 0.923 2.99

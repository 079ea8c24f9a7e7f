#!/bin/sh
# Make report.png, the picture of the README, from a report: docs/images/make_report.sh demo-report
# Needs chromium and Pillow.
set -e
page=$(realpath "$1/report.html")
shot=$(mktemp --suffix .png)
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=1.5 \
    --window-size=1366,1112 --screenshot="$shot" "file://$page" >/dev/null 2>&1
python3 - "$shot" "$(dirname "$0")/report.png" <<'END'
import sys
from PIL import Image

Image.open(sys.argv[1]).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(
    sys.argv[2], optimize=True
)
END
rm "$shot"

"""Print every finite float32 as the backup does, read it as the restore does, and compare the bits.

python -m bench.float32           all 2^32 patterns but NaN and the infinities; some ten minutes
"""

from __future__ import annotations

import base64
import sys

import msgspec
import numpy

import astra_backup

BLOCK = 1 << 20


def main() -> int:
    """1 if a single one does not come back."""
    tried = wrong = 0
    for start in range(0, 1 << 32, BLOCK):
        floats = numpy.arange(start, start + BLOCK, dtype="u4").view("f4")
        raw = floats[numpy.isfinite(floats)].astype(">f4").tobytes()
        if not raw:
            continue
        text = astra_backup._float32_texts(raw)
        assert text is not None
        binary = astra_backup.decode_vector(text)
        back = base64.b64decode(msgspec.json.decode(binary)["$binary"])
        tried += len(raw) // 4
        wrong += int((numpy.frombuffer(raw, "u4") != numpy.frombuffer(back, "u4")).sum())
    print(f"{tried:,} float32 tried, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

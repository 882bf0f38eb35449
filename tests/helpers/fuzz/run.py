"""Fuzz one reader with atheris, or give it one input again.

The corpus begins with the harness's own seeds and grows below --corpus. An input that breaks the promise is left in the
working directory, as libFuzzer does; flags that are not listed here are libFuzzer's. Needs: pip install atheris.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from random import Random

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["trtcal"], exclude=["trtcal.ranges.kernels"]):  # which numba compiles
    from fuzz import mutations
    from fuzz.harnesses import HARNESSES


def main() -> None:
    """Run libFuzzer on the harness that is asked for; it leaves the process itself."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("harness", choices=HARNESSES)
    parser.add_argument("--corpus", type=Path, metavar="FOLDER", help="default: a temporary one")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="an input to run once instead")
    options, flags = parser.parse_known_args()
    harness = HARNESSES[options.harness]
    logging.disable()
    warnings.simplefilter("error")  # as in the tests
    if options.replay is not None:
        harness.check(options.replay.read_bytes())
        return
    corpus = (options.corpus or Path(tempfile.mkdtemp(prefix="corpus-"))) / options.harness
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in harness.seeds():
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        try:
            return harness.mutate(bytes(data), rng)[:max_size]
        except Exception:  # what libFuzzer made before may be more than it can read
            return mutations.damaged(bytes(data), rng)[:max_size]

    limits = ["-max_len=300000", "-timeout=30", "-rss_limit_mb=3000"]
    atheris.Setup([sys.argv[0], *limits, *flags, str(corpus)], harness.check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

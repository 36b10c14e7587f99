"""``forethought export``: a reasoner or an instrument for other programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "export",
        parents=[common],
        allow_abbrev=False,
        help="write a reasoner or a direction for llama.cpp, or a direction as npy",
        description="Write a reasoner as a GGUF file, or the direction of an instrument as a GGUF control vector or as "
        "the npy arrays of the original releases, by the ending of OUT.",
    )
    parser.add_argument("source", metavar="SOURCE", help="'embedded', a folder with a model, or one of an instrument")
    parser.add_argument("out", metavar="OUT", help="FILE.gguf or FILE.npy")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from forethought.errors import ArtefactError
    from forethought.instruments.artefact import MANIFEST, Instrument
    from forethought.instruments.exchange import export_gguf, export_npy

    ending = Path(options.out).suffix
    if ending not in (".gguf", ".npy"):
        raise ArtefactError(f"{options.out} ends in {ending or 'nothing'}; name a file that ends in .gguf or .npy.")
    if (Path(options.source) / MANIFEST).is_file():
        instrument = Instrument.open(options.source)
        if ending == ".npy":
            export_npy(instrument, options.out)
        else:
            left_out = export_gguf(instrument, options.out, leave_out=True)
            if left_out and not options.quiet:
                sites = ", ".join(map(str, left_out))
                print(f"Left out what llama.cpp cannot steer: site {sites}.", file=sys.stderr)
    elif ending == ".npy":
        raise ArtefactError(f"{options.source} is no instrument; only directions are written as npy.")
    else:
        from forethought.reasoners.llama_cpp import export_gguf as export_model
        from forethought.reasoners.reasoner import Reasoner

        export_model(Reasoner.open(options.source, device="cpu"), options.out)
    print(options.out)

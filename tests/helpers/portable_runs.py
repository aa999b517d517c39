"""python portable_runs.py FOLDER [OVERRIDE ...]: ten short runs; prints the sha256 of each one's meta-parameters.

With torchrun, all ranks work on each; the first one prints.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

SHORT = ["train.steps=20", "train.tasks=4", "train.log_every=20", "train.eval_every=20", "train.checkpoint_every=20"]
SHORT += ["val.tasks=2", "test.tasks=2", "test.steps=1", "report=false", "diagnostics=off", "device.name=cpu"]
IMAGES = ["data=folder", "data.ways=3", "data.shots=1", "data.queries=2", "data.image_size=16", "model=conv4"]
IMAGES += ["model.filters=8", "data.root={root}"]
RUNS = {
    **{
        f"{algo} on sinusoid": [f"algo={algo}", "data=sinusoid"] for algo in ("maml", "imaml", "reptile", "cnp", "tnpd")
    },
    "np on gp": ["algo=np", "data=gp"],
    **{f"{algo} on images": [f"algo={algo}", *IMAGES] for algo in ("maml", "protonet", "r2d2", "metaoptnet")},
}


def main(folder: Path, more: list[str]) -> None:
    import metarun
    from metarun.compute.portable import pin_arithmetic

    if "device.deterministic=portable" in more:
        pin_arithmetic()  # before NumPy, with which the pictures are made
    from helpers.colours import class_folders
    from metarun.cli.torchrun import end_process
    from metarun.jobs.summary import params_sha256
    from metarun.storage import ranks

    if ranks.rank() > 0:
        folder = folder / f"rank{ranks.rank()}"
    root = class_folders(folder / "pictures", [f"class{i}" for i in range(12)], 6)
    found = {}
    for name, overrides in RUNS.items():
        words = [word.format(root=root) for word in overrides]
        with contextlib.redirect_stdout(io.StringIO()):
            result = metarun.run(metarun.compose([*words, *SHORT, *more]), folder / name)
        found[name] = params_sha256(result.params)
    if ranks.rank() == 0:
        print(json.dumps(found), flush=True)
    if ranks.size() > 1:
        end_process(0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main(Path(sys.argv[1]), sys.argv[2:])

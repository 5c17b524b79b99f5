"""Finding the Hydra configuration."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# In the repository `conf/` stands beside the package, in the wheel inside it.
CONF = next(folder for folder in (_PACKAGE.parent / "conf", _PACKAGE / "conf") if (folder / "train.yaml").is_file())

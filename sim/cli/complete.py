"""What a shell completes on Tab: names of what there is, and files where one may stand instead.

`attnsim --install-completion` has the shell ask. Each takes what is typed so far, and imports only
what knows the names.
"""

from collections.abc import Iterable
from pathlib import Path


def scenarios(incomplete: str) -> list[str]:
    """Shipped scenarios, and TOML files."""
    return [*_shipped("scenarios", incomplete), *toml_files(incomplete)]


def shipped_scenarios(incomplete: str) -> list[str]:
    """Shipped scenarios."""
    return _shipped("scenarios", incomplete)


def profiles(incomplete: str) -> list[str]:
    """Shipped profiles, and TOML files; behind a comma another one."""
    before, comma, last = incomplete.rpartition(",")
    found = [*_shipped("hw_profiles", last), *toml_files(last)]
    return [f"{before}{comma}{name}" for name in found]


def campaigns(incomplete: str) -> list[str]:
    """Shipped campaigns, and TOML files."""
    return [*_shipped("validate.campaigns", incomplete), *toml_files(incomplete)]


def schedules(incomplete: str) -> list[str]:
    """Schedules."""
    from sim.schedules import SCHEDULES

    return _starting(SCHEDULES, incomplete)


def models(incomplete: str) -> list[str]:
    """Models by name."""
    from sim.inputs.models import MODELS

    return _starting(MODELS, incomplete)


def toml_files(incomplete: str) -> list[str]:
    """TOML files, and folders on the way to them."""
    folder, slash, name = incomplete.rpartition("/")
    here = Path(folder + slash) if slash else Path()
    found = sorted(here.iterdir()) if here.is_dir() else []
    return [
        f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}"
        for path in found
        if path.name.startswith(name) and (name or not path.name.startswith("."))
        if path.is_dir() or path.suffix == ".toml"
    ]


def _shipped(package: str, incomplete: str) -> list[str]:
    from sim.inputs.files import shipped_names

    return _starting(shipped_names(package), incomplete)


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]

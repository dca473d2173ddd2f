# SPDX-License-Identifier: Apache-2.0
"""What was recorded of vLLM's objects and stands in no row of the tables: ``python -m
tests.recorder FOLDER``. The exit code is 1 if there is any.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_cold.compat import places
from vllm_cold.compat.patching import Place, Relies, named

Names = dict[Any, set[str]]


def recorded(folder: Path) -> dict[tuple[str, str], set[str]]:
    """Files of ours by (where, name)."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            where, name, file = line.split("\t")
            found[where, name].add(file)
    return found


def _parts(place: Place, where: str) -> Iterator[tuple[str, str]]:
    """Each (owner, name) that a place has at ``where``."""
    module, _, path = where.partition(":")
    names = path.split(".") if path else []
    for end, name in enumerate(names):
        yield (f"{module}:{'.'.join(names[:end])}" if end else module), name
    if isinstance(place, Relies):
        for name, takes in place._names().items():
            yield where, name
            for parameter in (takes or "").split():
                yield f"{where}{'.' if path else ':'}{name}", f"{parameter}="


def _owner(where: str) -> Any:
    """What a recorded line calls it; None if this vLLM lacks it."""
    try:
        owner = named(where)
    except (ImportError, AttributeError):
        return None
    if not isinstance(owner, type) and ":" in where and not callable(owner):
        return type(owner)
    return owner


def stated() -> Names:
    """Names by the module, class or function that the rows have them of."""
    names: Names = defaultdict(set)
    for table in (*places.TABLES, places.CPU_TABLE):
        for row in places.table(table):
            for place in row.places:
                for where in filter(None, (place.where, place.before)):
                    for owner, name in _parts(place, where):
                        names[_owner(owner)].add(name)
    return names


def is_stated(names: Names, where: str, name: str) -> bool:
    owner = _owner(where)
    if not isinstance(owner, type):
        return name in names[owner]
    name = name.removesuffix("=")  # of a constructor: the field's
    return any(
        name in of and (issubclass(kind, owner) or issubclass(owner, kind))
        for kind, of in names.items()
        if isinstance(kind, type)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    found = recorded(parser.parse_args().folder)
    names = stated()
    missing = {key: files for key, files in found.items() if not is_stated(names, *key)}
    for (where, name), files in sorted(missing.items()):
        print(f"{where}  {name}  ({', '.join(sorted(files))})")
    print(f"{len(found)} names recorded, {len(missing)} of them in no row")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()

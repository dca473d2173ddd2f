# SPDX-License-Identifier: Apache-2.0
"""Executes a Dockerfile's steps in a folder, where there is no Docker. As root:

    debootstrap --variant=minbase bookworm ROOT
    python packaging/docker_steps.py docker/cpu/Dockerfile ROOT [--env NAME=VALUE] [--mount FOLDER]

For ``docker/cpu``: FROM stands for what ROOT holds, and ENTRYPOINT is called with the arguments
after ``--``.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

CONTEXT = Path(__file__).resolve().parents[1]
SYSTEM = ("/proc", "/sys", "/dev")


def steps(text: str) -> list[tuple[str, str]]:
    """Instructions with their arguments, in their order, lines that go on as one."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    parts = (line.partition(" ") for line in joined if line.strip())
    return [(name, rest.strip()) for name, _, rest in parts]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--env", action="append", default=[], help="for the build, as ARG is")
    parser.add_argument("--mount", action="append", default=[], help="a folder of this machine")
    parser.add_argument("arguments", nargs="*", help="of the ENTRYPOINT; else it is not called")
    options = parser.parse_args()
    root: Path = options.root.resolve()
    build = dict(pair.split("=", 1) for pair in options.env)
    variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    shell, user, folder = ["/bin/sh", "-c"], "root", "/"

    def call(command: list[str], extra: dict[str, str]) -> int:
        print("+", shlex.join(command), flush=True)
        inside = f"cd {shlex.quote(folder)} && exec {shlex.join(command)}"
        environment = variables | extra | {"HOME": "/root" if user == "root" else folder}
        chroot = ["chroot", f"--userspec={user}", str(root), "/bin/sh", "-c", inside]
        return subprocess.run(chroot, env=environment).returncode

    for path in (*SYSTEM, *options.mount):
        there = root / path.lstrip("/")
        there.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--rbind", path, there], check=True)
    shutil.copy("/etc/resolv.conf", root / "etc")
    for name, rest in steps((CONTEXT / options.dockerfile).read_text()):
        if name == "SHELL":
            shell = json.loads(rest)
        elif name == "ARG":
            build = {rest.partition("=")[0]: rest.partition("=")[2]} | build
        elif name == "ENV":
            for key, _, value in (pair.partition("=") for pair in shlex.split(rest)):
                variables[key] = value.replace("$PATH", variables["PATH"])
        elif name == "COPY":
            pattern, target = rest.split()
            into = root / target.lstrip("/")
            into.mkdir(parents=True, exist_ok=True)
            for source in CONTEXT.glob(pattern):
                shutil.copy(source, into)
        elif name == "RUN":
            if status := call([*shell, rest], build):
                return status
        elif name == "USER":
            user = rest
        elif name == "WORKDIR":
            folder = rest
        elif name == "ENTRYPOINT":
            return call([*json.loads(rest), *options.arguments], {}) if options.arguments else 0
        elif name not in ("FROM", "EXPOSE"):
            sys.exit(f"{options.dockerfile}: {name} is not known here")
    return 0


if __name__ == "__main__":
    # Mounts are this process's own and go with it.
    if "MOUNTS_ARE_PRIVATE" not in os.environ:
        os.environ["MOUNTS_ARE_PRIVATE"] = "1"
        private = ("unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv)
        os.execvp(private[0], private)
    sys.exit(main())

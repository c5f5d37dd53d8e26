"""A Dockerfile's steps, carried out without Docker below a folder that stands for the image's root.

All stages share that folder, since an environment's scripts hold its path. What needs the rights of
an image's builder (users, system packages) is left out and kept in `left_out`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

# Folders of the image that its steps name.
PATHS = re.compile(r"(?<![\w.])/(opt/estuary|source|cache)(?![\w-])")
NEEDS_RIGHTS = ("useradd", "apt-get")
LONGEST_STEP_S = 1800


@dataclass(frozen=True)
class Image:
    """What a container of a stage would begin with."""

    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    healthcheck: tuple[str, ...] = ()
    user: str = "root"


def read_stages(dockerfile):
    """The instructions of each stage by its name, as (word, rest), the first of them FROM."""
    stages = {}
    for line in dockerfile.read_text().replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            stages[rest.split()[-1]] = current = []
        current.append((word, rest.strip()))
    return stages


class Rehearsal:
    """Builds targets; `skips` tells of a shell command whether it is left out too."""

    def __init__(self, root, context, *, skips, arguments):
        self.root = root
        self.context = context
        self.stages = read_stages(context / "Dockerfile")
        self.left_out = []
        self._skips = skips
        self._arguments = arguments
        self._built = {}

    def build(self, name):
        """Carry out a stage and those that it stands on."""
        if name not in self._built:
            image = Image()
            for word, rest in self.stages[name]:
                image = getattr(self, f"_{word.lower()}")(image, rest)
            self._built[name] = image
        return self._built[name]

    def process(self, image, command, **environment):
        """Start a command as in a container of the image."""
        return subprocess.Popen(
            [self._here(word) for word in command],
            cwd=self._here(image.workdir),
            env=self._environment(image) | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _here(self, text):
        return PATHS.sub(lambda found: f"{self.root}/{found[1]}", text)

    def _environment(self, image):
        # Of this machine only what tools need to run at all, and how it reaches package indexes.
        kept = {name: value for name, value in os.environ.items()
                if name in ("PATH", "LANG") or name.startswith(("PIP_", "SSL_"))}  # fmt: skip
        own = {name: self._here(value) for name, value in image.environment.items()}
        return kept | {"TMPDIR": str(self.root / "tmp")} | own

    def _from(self, image, rest):
        base = rest.split()[0]
        return self.build(base) if base in self.stages else image

    def _env(self, image, rest):
        environment = dict(image.environment)
        for pair in rest.split():
            name, _, value = pair.partition("=")
            before = environment.get("PATH", os.environ["PATH"])
            environment[name] = value.strip('"').replace("$PATH", before)
        return replace(image, environment=environment)

    def _arg(self, image, rest):
        name, _, default = rest.partition("=")
        value = self._arguments.get(name, default.strip('"'))
        return replace(image, environment=image.environment | {name: value})

    def _run(self, image, rest):
        if rest.startswith("["):
            commands = [json.loads(rest)]
        else:
            steps = [step.strip() for step in rest.split("&&")]
            commands = [["sh", "-c", step] for step in steps if not self._is_left_out(step)]
        for command in commands:
            process = self.process(image, command)
            said, _ = process.communicate(timeout=LONGEST_STEP_S)
            assert process.returncode == 0, f"{command}: {said}"
        return image

    def _is_left_out(self, step):
        if step.startswith(NEEDS_RIGHTS) or step.startswith("chown") or self._skips(step):
            self.left_out.append(step)
            return True
        return False

    def _copy(self, image, rest):
        *sources, target = rest.split()
        if sources[0].startswith("--from="):
            self.build(sources[0].partition("=")[2])
            assert (sources[1], Path(self._here(target)).exists()) == (target, True)
            return image
        folder = Path(self._here(image.workdir))
        for source in sources:
            place = folder / (source if target == "./" else target)
            if (self.context / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(self.context / source, place, ignore=ignored)
            else:
                shutil.copy(self.context / source, place)
        return image

    def _workdir(self, image, rest):
        Path(self._here(rest)).mkdir(parents=True, exist_ok=True)
        return replace(image, workdir=rest)

    def _user(self, image, rest):
        return replace(image, user=rest)

    def _entrypoint(self, image, rest):
        return replace(image, entrypoint=tuple(json.loads(rest)))

    def _cmd(self, image, rest):
        return replace(image, command=tuple(json.loads(rest)))

    def _healthcheck(self, image, rest):
        return replace(image, healthcheck=tuple(json.loads(rest.partition("CMD ")[2])))

    def _volume(self, image, rest):
        for path in json.loads(rest):
            Path(self._here(path)).mkdir(parents=True, exist_ok=True)
        return image

    def _label(self, image, _):
        return image

    _expose = _stopsignal = _label


def borrow_packages(environment):
    """Let a fresh environment see what this one has installed."""
    (site,) = Path(environment).glob("lib/python3*/site-packages")
    # An environment begins with an old setuptools, which would come first.
    for old in (*site.glob("setuptools*"), *site.glob("*distutils*"), *site.glob("pkg_resources")):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(ours))

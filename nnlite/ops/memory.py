"""How much memory the system still has for this process."""

from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Of each version of control groups: where they are mounted, their files of limit and usage, and the part of the usage,
# in memory.stat, that is a cache of files and is given back at need.
VERSIONS = {"": ("", "memory.max", "memory.current", "inactive_file"),
            "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}


def free_bytes():
    """What the machine has available, or what the control groups of this process (of a container, or a batch job)
    leave it, if that is less; None where neither can be known."""
    return min([*_of_machine(), *_of_groups()], default=None)


def _of_machine():
    try:
        found = dict(line.split(":", 1) for line in (PROC / "meminfo").read_text().splitlines())
        yield 1024 * int(found["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return


def _of_groups():
    """What each group leaves: the process's own and those around it. A container may see its own as the root."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        for controller in {*controllers.split(",")} & {*VERSIONS}:
            mount, *names = VERSIONS[controller]
            own = Path(path.strip("/"))
            for folder in (own, *own.parents):
                yield from _left(GROUPS / mount / folder, *names)


def _left(group, limit, usage, cache):
    try:
        left = int((group / limit).read_text()) - int((group / usage).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        yield max(left + int(statistics.get(cache, 0)), 0)
    except (OSError, ValueError):   # no such group, or none with a limit
        return

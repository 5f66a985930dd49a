"""Tells network file systems from local ones, because SQLite must not lie on the former."""

from __future__ import annotations

from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"),
        *("gpfs", "beegfs", "orangefs", "pvfs2", "panfs", "wekafs", "fuse.sshfs", "fuse.ceph"),
        *("fuse.glusterfs", "fuse.beegfs", "fuse.juicefs", "fuse.lustre"),
    }
)


def network_file_system(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """The kind of network file system that `path` lies (or would lie) on, None for a local one.

    `mounts` is in the format of /proc/self/mountinfo, see proc(5); where it cannot be read, nothing
    is known and None is returned.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    target = path.absolute().resolve()
    best, kind = -1, None
    for line in lines:
        left, _, right = line.partition(" - ")
        mount = Path(left.split()[4].replace("\\040", " "))
        depth = len(mount.parts)
        if target.is_relative_to(mount) and depth >= best:
            best, kind = depth, right.split()[0]
    return kind if kind in _NETWORK else None

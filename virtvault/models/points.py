"""Recovery points, as their manifests hold them."""

from __future__ import annotations

from dataclasses import dataclass, field

# Written into manifests; those of MANIFEST_OLDEST and later are read.
MANIFEST_VERSION = 2
MANIFEST_OLDEST = 1


@dataclass(frozen=True)
class BackingImage:
    """An image outside the repository that a ``top`` point needs: it must not have changed since.

    ``length`` in bytes and ``modified`` (nanoseconds since the epoch) are the file's own.
    """

    path: str
    format: str
    length: int
    modified: int


@dataclass(frozen=True)
class PointDisk:
    """One disk inside a point.

    ``sync`` is what was done (``full``, ``incremental`` or ``top``), ``reason`` says why where
    that is not what was asked. ``witness`` are the bytes that the bitmap's witness counts, 0 where
    it has none. ``parent`` is the point id the image's backing file lies in (empty
    for a full). ``backing`` are the images a ``top`` needs, the nearest first.
    ``transferred`` counts the bytes the block job went through, ``stored`` the bytes the image
    takes in the repository, ``length`` its file's length. ``source`` is the file name of the
    active layer at the instant, ``source_format`` its driver, ``bitmap`` the dirty bitmap that
    counts from this point, ``persistent`` whether that bitmap survives a power cycle. ``digests``
    is the digest of the disk's list of digests (see :mod:`workers.digests`), empty in
    manifests of version 1.
    """

    target: str
    file: str
    sync: str
    parent: str
    reason: str
    virtual_size: int
    transferred: int
    stored: int
    length: int
    source: str
    source_format: str
    bitmap: str
    persistent: bool
    backing: tuple[BackingImage, ...] = ()
    witness: int = 0
    digests: str = ""


@dataclass(frozen=True)
class Point:
    """A recovery point: all its disks at one instant. This is the manifest's content.

    ``instant`` is when the guest's disks were as stored; ``paused_ms`` how long the guest's CPUs
    stood for it; ``frozen_ms`` how long its file systems were frozen. ``consistency`` is
    ``agent-frozen`` or ``crash-consistent``. ``skipped`` maps disk targets to why they are not in
    the point. ``isolated`` is true where no fault of the backup could reach the guest; ``state``
    is the domain's at the instant: ``running``, ``paused`` or ``shut off``. ``merged`` are the
    points that prune has folded into this one since.
    """

    id: str
    repository: str
    repository_id: str
    task_id: str
    domain: str
    uuid: str
    host: str
    instant: str
    started: str
    finished: str
    consistency: str
    paused_ms: float
    frozen_ms: float
    isolated: bool
    disks: tuple[PointDisk, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    state: str = "running"
    merged: tuple[str, ...] = ()
    schema_version: int = MANIFEST_VERSION


@dataclass(frozen=True)
class PointStatus:
    """How a point is now: what its manifest cannot say, since it was written before.

    ``state``: ``ok``; ``bad`` (a verify found it damaged); ``broken`` (a link of its chain, or its
    manifest, is missing or not what it should be, or it stands on a bad one); ``pruning`` (it is
    being removed). ``why`` says it in a sentence, empty for ``ok``. ``verdict`` is that of the last
    verify (``good``, ``bad``, ``unproven``, or empty: never verified) and ``verified`` when that
    was. ``protected`` is the reason it is kept whatever the rules say, empty where it is not.
    """

    point: str
    repository: str
    repository_id: str
    uuid: str
    state: str = "ok"
    why: str = ""
    verdict: str = ""
    verified: str = ""
    protected: str = ""


@dataclass(frozen=True)
class DiskVerdict:
    """One disk of a verified point. ``compared`` counts the bytes that were read and hashed."""

    target: str
    verdict: str
    detail: str = ""
    compared: int = 0


@dataclass(frozen=True)
class BootReport:
    """What ``verify --boot`` saw.

    ``booted``: the guest agent or the console answered; ``evidence`` says which and what.
    ``seconds`` from the start of the CPUs until then. ``screenshot`` is the PNG file beside the
    verdict, empty where none could be taken.
    """

    booted: bool
    seconds: float
    evidence: str
    screenshot: str = ""


@dataclass(frozen=True)
class SourceReport:
    """What a comparison with the live source saw, by ``samples`` of ``compared`` bytes in all.

    ``differing`` are ``TARGET OFFSET`` of the ranges that differ though no bitmap marks them.
    """

    samples: int
    compared: int
    differing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What a verify found of one point; kept beside its manifest.

    ``verdict``: ``good``; ``bad`` (``detail`` names the first damage); ``unproven`` (nothing wrong
    was found, and not everything could be proven: ``detail`` says what). ``breaks`` are the points
    that stand on it.
    """

    point: str
    verdict: str
    at: str
    host: str
    task_id: str
    detail: str = ""
    disks: tuple[DiskVerdict, ...] = ()
    breaks: tuple[str, ...] = ()
    boot: BootReport | None = None
    source: SourceReport | None = None

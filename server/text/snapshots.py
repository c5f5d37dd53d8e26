"""`Snapshots`: the whole answer as it stands, out of frames that each show one canvas."""

from dataclasses import replace

from sampler import Frame, FramePosition, FrameState


class Snapshots:
    """Keeps what has become final; what is a draft comes from the latest frame."""

    def __init__(self) -> None:
        self._final: dict[int, FramePosition] = {}
        self._shown: Frame | None = None

    def add(self, frame: Frame, *, limit: int | None) -> Frame | None:
        """The frame with everything before and around its canvas; None when nothing has changed.

        limit: tokens of the answer, once it has ended; what lies behind is not shown
        """
        latest = {position.offset: position for position in frame.positions}
        for offset, position in latest.items():
            if position.state is FrameState.FINAL:
                self._final[offset] = position
        merged = latest | self._final
        length = max([frame.base + frame.length, *(offset + 1 for offset in merged)])
        if limit is not None:
            merged = {offset: each for offset, each in merged.items() if offset < limit}
            length = min(length, limit)
        positions = tuple(merged[offset] for offset in sorted(merged))
        progress = tuple(entry for entry in frame.progress if entry[0] < length)
        shown = Frame(step=0, base=0, length=length, positions=positions, progress=progress)
        if self._shown == shown:
            return None
        self._shown = shown
        return replace(shown, step=frame.step)

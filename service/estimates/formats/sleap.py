"""SLEAP's .slp, written by sleap-io (extra interop): predicted instances with scores, a track for each box."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from service.estimates.drawing import drawn_links
from service.estimates.results import Results


def render_sleap(results: Results) -> Iterator[bytes]:
    """Yield a file that names the video, or the pictures as a video of SLEAP's."""
    from sleap_io import Edge, LabeledFrame, Labels, Node, PredictedInstance, Skeleton, Track, Video

    version = results.version
    nodes = [Node(name) for name in results.point_names()]
    links = reversed(drawn_links(version.skeleton))  # the strongest first
    skeleton = Skeleton(nodes, [Edge(nodes[link.i], nodes[link.j]) for link in links], name=version.category)
    is_video = results.frames is not None
    files = [results.name(index) for index in range(len(results.boxes))]
    video = Video(_name_video(results, files) if is_video else files, open_backend=False)
    tracks: dict[int, Track] = {}
    frames: dict[int, LabeledFrame] = {}
    for pose in results.poses():
        points = [
            [np.nan if point[name] is None else point[name] for name in ("x", "y", "score")]
            for point in results.points(pose)
        ]
        table = np.array(points, dtype=np.float64)
        track = tracks.setdefault(box, Track(f"box{box}")) if (box := pose.get("box")) is not None else None
        number = pose["frame"] if is_video else pose["index"]
        frame = frames.setdefault(number, LabeledFrame(video=video, frame_idx=number))
        frame.instances.append(
            PredictedInstance.from_numpy(
                table[:, :2], skeleton, point_scores=table[:, 2], score=float(np.nanmean(table[:, 2])), track=track
            )
        )
        video.backend_metadata = _describe_video(files, is_video, pose["height"], pose["width"])
    labels = Labels(list(frames.values()), videos=[video], skeletons=[skeleton], tracks=list(tracks.values()))
    with tempfile.TemporaryDirectory(prefix="ppl-") as folder:
        path = Path(folder, "poses.slp")
        labels.save(str(path), embed=False, verbose=False)
        yield path.read_bytes()


def _name_video(results: Results, files: list[str]) -> str:
    """Return the video's name, which its frames' names begin with."""
    return files[0].rpartition("#")[0] if files else "video"


def _describe_video(files: list[str], is_video: bool, height: int, width: int) -> dict[str, object]:
    shape = [len(files), height, width, 3]
    if is_video:
        return {"type": "MediaVideo", "shape": shape, "filename": files[0].rpartition("#")[0]}
    return {"type": "ImageVideo", "shape": shape, "filename": files[0], "filenames": files}

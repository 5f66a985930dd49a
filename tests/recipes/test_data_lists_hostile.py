"""Lists that try to reach what does not belong to their data set."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from recipes.data.confine import refusals
from tests.recipes.data_files import index, numbered, touch, write_video

PROTOCOLS = [
    "http://host/x.mp4", "https://host/x.mp4", "HTTP://host/x", " http://host/x", "ftp://host/x",
    "file:///etc/passwd", "file:x.mp4", "concat:a.mp4|b.mp4", "concatf:list.txt",
    "subfile,,start,0,end,9,,:a.mp4", "data:text/plain,x", "data:video/mp4;base64,AAAA",
    "crypto:a.mp4", "crypto+file:a.mp4", "rtmp://h/x", "rtsp://h/x", "tcp://h:1", "udp://h:1",
    "pipe:0", "pipe:", "fd:0", "unix:/x", "cache:http://h/x", "async:file:x", "tee:a", "md5:a",
    "hls+http://h/x.m3u8", "hls:x.m3u8", "mmsh://h/x", "srt://h:1", "sftp://h/x", "smb://h/x",
    "gopher://h/x", "ipfs://x", "bluray:/x", "lavfi:testsrc", "ffrtmphttp://h/x", "rtp://h:1",
    "icecast://h/x", "prompeg:x", "libamqp:x", "zmq:tcp://h:1", "dvd:x", "C:\\videos\\x.mp4",
]  # fmt: skip
ESCAPES = [
    "/etc/passwd", "//etc/passwd", "../x.mp4", "a/../../x.mp4", "..", "a/..", "./../x.mp4",
    "~/x.mp4", "~root/x.mp4", "/dev/stdin", "/proc/self/environ",
    "link.mp4", "linked/x.mp4", "linked/none.mp4", "deep/linked/x.mp4", "chain.mp4", "link.mp4/",
]  # fmt: skip
TEXTS = [
    "", "a\nb.mp4", "a\x00.mp4", "a\r.mp4", "a\tb.mp4", "\x1b[31mred.mp4", "a\x7f.mp4", "a\x85.mp4",
    "a\u2028b.mp4", "a\u2029b.mp4", "\udcff.mp4", "n" * 252 + ".mp4", "ä" * 126 + ".mp4",
    "/".join(["d" * 200] * 25) + ".mp4",
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one good file and links to what lies outside."""
    outside = touch(tmp_path / "outside", "x.mp4")
    root = touch(tmp_path / "root", "good.mp4", "deep/inner.mp4")
    (root / "link.mp4").symlink_to(outside / "x.mp4")
    (root / "chain.mp4").symlink_to("link.mp4")
    (root / "linked").symlink_to(outside)
    (root / "deep" / "linked").symlink_to("../../outside")
    (root / "inside.mp4").symlink_to("deep/inner.mp4")
    (root / "dangling.mp4").symlink_to("nowhere.mp4")
    (root / "circle.mp4").symlink_to("circle.mp4")
    return root


@pytest.mark.parametrize("path", [*PROTOCOLS, *ESCAPES, *TEXTS])
def test_a_listed_path_cannot_reach_outside_its_root(root: Path, path: str) -> None:
    assert list(refusals(root, ["good.mp4", path], follow_links=False)) == [path]


@pytest.mark.parametrize("path", [*PROTOCOLS, *ESCAPES[:11], *TEXTS])
def test_allowing_links_allows_nothing_else(root: Path, path: str) -> None:
    assert list(refusals(root, ["good.mp4", path], follow_links=True)) == [path]


def test_reasons_say_what_to_do(root: Path) -> None:
    found = refusals(root, ["http://h/x", "/a.mp4", "link.mp4"], follow_links=False)
    assert "rename it" in found["http://h/x"]
    assert "relative to the root" in found["/a.mp4"]
    assert "follow_links: true" in found["link.mp4"]


def test_links_within_the_root_strange_names_and_missing_files_pass(root: Path) -> None:
    names = ["Act 1: x/[a] (b) & #c;!.avi", "-a_b.mp4", "...mp4", "a..b/c.mp4", "日本　語.mp4",
             "👩‍👧.mp4", "%05d.mp4", "*.mp4", "$(x).mp4", "inside.mp4", "dangling.mp4",
             "circle.mp4", "none/x.mp4", "good.mp4/x.mp4"]  # fmt: skip
    assert refusals(root, names, follow_links=False) == {}
    assert refusals(root, ["link.mp4", "linked/x.mp4", "chain.mp4"], follow_links=True) == {}


@pytest.mark.parametrize("follow_links", [False, True])
def test_only_regular_files_pass(root: Path, follow_links: bool) -> None:
    os.mkfifo(root / "pipe.mp4")
    (root / "folder.mp4").mkdir()
    (root / "to_device.mp4").symlink_to("/dev/zero")
    (root / "to_pipe.mp4").symlink_to("pipe.mp4")
    names = ["pipe.mp4", "pipe.mp4/", "folder.mp4", "to_device.mp4", "to_pipe.mp4", "."]
    found = refusals(root, names, follow_links)
    assert set(found) == set(names)
    assert found["pipe.mp4"] == found["to_pipe.mp4"] == "is a pipe"
    assert found["folder.mp4"] == found["."] == "is a folder"
    assert found["to_device.mp4"] == ("is a device" if follow_links else refusals(
        root, ["link.mp4"], follow_links=False)["link.mp4"])  # fmt: skip


def test_a_socket_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.mp4")
        assert refusals(tmp_path, ["s.mp4"], follow_links=False) == {"s.mp4": "is a socket"}


def test_a_root_that_is_itself_a_link_is_no_escape(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    paths = ["good.mp4", "deep/inner.mp4", "inside.mp4"]
    assert refusals(tmp_path / "alias", paths, follow_links=False) == {}
    assert refusals(Path("/"), ["etc/passwd"], follow_links=False) == {}


@pytest.fixture
def requests() -> Iterator[tuple[int, list[str]]]:
    """A web server on this machine and the paths it was asked for."""
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port, asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_index_of_hostile_files_and_entries_asks_nobody_and_says_why(
    tmp_path: Path, requests: tuple[int, list[str]]
) -> None:
    port, asked = requests
    url = f"http://127.0.0.1:{port}"
    root = tmp_path / "root"
    write_video(root / "good.mp4", numbered(20))
    disguised = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}/hls.ts\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{url}/concat.mp4'\n",
        "dash.mp4": f'<?xml version="1.0"?>\n<MPD><BaseURL>{url}/</BaseURL></MPD>\n',
        "asx.avi": f'<asx version="3.0"><entry><ref href="{url}/asx"/></entry></asx>\n',
        "pls.mkv": f"[playlist]\nFile1={url}/pls\nNumberOfEntries=1\n",
        "sdp.webm": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        "reference.mov": f"RTSPtext\n{url}/reference\n",
        "script.mp4": "#!/bin/sh\ntouch pwned\n",
    }
    for name, text in disguised.items():
        (root / name).write_text(text)
    entries = [f"{url}/listed.mp4", f"concat:{url}/a|{url}/b", f"cache:{url}/c", "link.mp4"]
    (root / "link.mp4").symlink_to("/etc/hostname")
    lines = ["path", "good.mp4", *disguised, *(f'"{entry}"' for entry in entries)]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    output = index(
        tmp_path / "out", format="csv", name="x", file=str(root / "list.csv"), max_bad_share=1.0
    )
    table = pd.read_parquet(output.path).set_index("path")
    assert asked == []
    assert table.verdict.to_dict() == {
        path: "reject" if path != "good.mp4" else "random" for path in table.index
    }
    assert len(table) == 1 + len(disguised) + len(entries)
    assert all(table.reason[name] for name in disguised)
    assert table.reason["link.mp4"].startswith("a link leads out of the root")
    assert sum("URL or protocol" in reason for reason in table.reason) == 3

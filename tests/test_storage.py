"""Storage: an artifact is whole or absent, on the local disk and in an object store."""

import contextlib
import errno
import hashlib
import io
import itertools
import os
import resource
import uuid
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
import torch

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.storage import DigestingFile, list_files, publish, publish_bytes, read_bytes


@pytest.fixture(params=["local", "memory", "s3"])
def root(request, tmp_path):
    """A folder of each kind of file system."""
    if request.param == "local":
        yield str(tmp_path)
        return
    if request.param == "s3":
        yield f"{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}"
        return
    folder = f"memory:///{uuid.uuid4().hex}"
    yield folder
    filesystem, name = storage.resolve(folder)
    if filesystem.exists(name):
        filesystem.rm(name, recursive=True)


@pytest.fixture
def memory():
    folder = f"memory:///{uuid.uuid4().hex}"
    yield folder
    fsspec.filesystem("memory").rm(storage.resolve(folder)[1], recursive=True)


class BrokenError(Exception):
    pass


# --- publish


def test_published_bytes_are_there_and_folders_are_made(root):
    path = storage.join(root, "a", "b", "c.bin")
    assert not storage.exists(path)
    with publish(path) as file:
        file.write(b"one")
        file.write(b"two")
    assert read_bytes(path) == b"onetwo"
    assert storage.size_bytes(path) == 6
    assert storage.exists(path)
    assert list_files(root) == [path]


def test_publishing_replaces_what_was_there(root):
    path = storage.join(root, "c.bin")
    publish_bytes(path, b"a long first content")
    publish_bytes(path, b"short")
    assert read_bytes(path) == b"short"


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
def test_a_body_that_raises_leaves_the_old_content_and_no_temporary(root, error):
    path = storage.join(root, "c.bin")
    publish_bytes(path, b"old")
    with pytest.raises(error), publish(path) as file:
        file.write(b"half of the n")
        raise error
    assert read_bytes(path) == b"old"
    assert list_files(root) == [path]


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
def test_a_first_body_that_raises_leaves_nothing(root, error):
    path = storage.join(root, "c.bin")
    with pytest.raises(error), publish(path) as file:
        file.write(b"half")
        raise error
    assert not storage.exists(path)
    assert list_files(root) == []
    publish_bytes(path, b"whole")  # and the next attempt succeeds
    assert read_bytes(path) == b"whole"


def test_nothing_appears_under_the_name_before_the_end(root):
    path = storage.join(root, "c.bin")
    with publish(path) as file:
        file.write(b"x" * 100_000)
        file.flush()
        assert not storage.exists(path)
    assert storage.size_bytes(path) == 100_000


def test_a_local_file_is_flushed_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(
        os,
        "fsync",
        lambda descriptor: (events.append(str(Path(f"/proc/self/fd/{descriptor}").readlink())), fsync(descriptor)),
    )
    monkeypatch.setattr(Path, "rename", lambda self, to: (events.append("rename"), rename(self, to))[1])
    with publish(str(tmp_path / "c.bin")) as file:
        file.write(b"buffered")
    assert events == [str(tmp_path / "c.bin.tmp"), "rename", str(tmp_path)]


def test_a_leftover_of_a_killed_process_is_overwritten(tmp_path):
    (tmp_path / "c.bin.tmp").write_bytes(b"half, and longer than the new content")
    publish_bytes(str(tmp_path / "c.bin"), b"new")
    assert read_bytes(str(tmp_path / "c.bin")) == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["c.bin"]


@pytest.mark.parametrize("how", [{"shared": True}, {"lasting": False}])
def test_two_writers_of_one_name_do_not_meet(tmp_path, how):
    """A task that is tried again, while its first trial goes on."""
    path = str(tmp_path / "c.bin")
    with publish(path, **how) as first:
        first.write(b"first, ")
        first.flush()
        with publish(path, **how) as second:
            second.write(b"second")
        assert read_bytes(path) == b"second"
        first.write(b"and on")
        first.flush()
        assert read_bytes(path) == b"second"
    assert read_bytes(path) == b"first, and on"
    assert [each.name for each in tmp_path.iterdir()] == ["c.bin"]


def test_a_move_tells_which_of_two_places_is_at_fault(tmp_path):
    there, missing = str(tmp_path / "a"), str(tmp_path / "b")
    publish_bytes(there, b"x")
    with pytest.raises(FileNotFoundError, match=f"'{missing}'"):
        storage.move(missing, there)
    with pytest.raises(ConfigError, match=f"{missing}/c cannot be written"):
        storage.move(there, f"{missing}/c")
    storage.move(there, missing)
    assert [each.name for each in tmp_path.iterdir()] == ["b"]


def test_publishing_over_a_folder_fails_and_leaves_no_temporary(tmp_path):
    (tmp_path / "c").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        publish_bytes(str(tmp_path / "c"), b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["c"]


# --- a disk without room


@pytest.fixture(params=["full", "limited"])
def filled(request, tmp_path):
    """A file, and the reason why no megabyte can be written in its stead."""
    path = str(tmp_path / "c.bin")
    publish_bytes(path, b"old")
    if request.param == "full":  # not a byte; the temporary is made through the link
        Path(f"{path}.tmp").symlink_to("/dev/full")
        yield path, "No space left on device"
        return
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, limits[1]))  # the kernel cuts the write that passes it
    try:
        yield path, "File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_at_once(file):
    file.write(bytes(1 << 20))


def write_little_by_little(file):
    for _ in range(1 << 10):
        file.write(bytes(1 << 10))


def write_and_flush(file):
    for _ in range(1 << 10):
        file.write(bytes(1 << 10))
        file.flush()


def write_unheard(file):
    """Must not be published, cut as it is, because the body went on."""
    with contextlib.suppress(OSError):
        file.write(bytes(1 << 20))


def write_checkpoint(file):
    """Torch raises a RuntimeError for a write that fails."""
    torch.save({"weights": torch.zeros(1 << 18)}, DigestingFile(file))


def write_table(file):
    with pa.ipc.new_file(file, pa.schema([("ids", pa.int64())])) as writer:
        writer.write_batch(pa.record_batch({"ids": pa.array(range(1 << 17))}))


@pytest.mark.parametrize(
    "write", [write_at_once, write_little_by_little, write_and_flush, write_unheard, write_checkpoint, write_table]
)
def test_a_disk_without_room_is_told_in_one_line_and_the_old_content_stays(filled, write):
    path, reason = filled
    with pytest.raises(ConfigError) as caught, publish(path) as file:
        write(file)
    assert str(caught.value) == f"{path} cannot be written ({reason}); mend the path, its rights or the disk's space"
    assert read_bytes(path) == b"old"
    assert [each.name for each in Path(path).parent.iterdir()] == ["c.bin"]


def test_a_byte_that_has_no_room_is_told_at_the_end(tmp_path):
    (tmp_path / "c.bin.tmp").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match="No space left on device"):
        publish_bytes(str(tmp_path / "c.bin"), b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_bodys_own_error_stays_what_it_is(tmp_path):
    """Even one of another full disk: this one has room."""
    path = str(tmp_path / "c.bin")
    with pytest.raises(FileNotFoundError), publish(path) as file:
        file.write(read_bytes(str(tmp_path / "missing")))
    with pytest.raises(OSError, match="No space left") as caught, publish(path) as file:
        file.write(b"x")
        Path("/dev/full").write_bytes(b"x")
    assert type(caught.value) is OSError
    assert list(tmp_path.iterdir()) == []


def test_a_bodys_own_error_is_told_where_what_it_wrote_has_no_room(tmp_path):
    """What is buffered is written when the file is closed, and fails then."""
    (tmp_path / "c.bin.tmp").symlink_to("/dev/full")
    with pytest.raises(BrokenError), publish(str(tmp_path / "c.bin")) as file:
        file.write(b"x")
        raise BrokenError
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_has_no_room_is_told(filled):
    path, reason = filled
    if reason == "No space left on device":
        path = f"{path}.tmp"
    with pytest.raises(ConfigError, match=rf"cannot be written \({reason}\)"):
        storage.append_line(path, "x" * (1 << 20))


# --- list_files


def test_sizes_below_a_folder(root):
    for name, content in (("f/a", b"1"), ("f/sub/b", b"22"), ("f/.work/c", b"333"), ("g", b"4444")):
        publish_bytes(storage.join(root, name), content)
    assert storage.sizes_below(storage.join(root, "f")) == {"a": 1, "sub/b": 2}
    assert storage.sizes_below(storage.join(root, "f/")) == {"a": 1, "sub/b": 2}
    assert storage.sizes_below(storage.join(root, "f/.work")) == {"c": 3}
    for name in ("missing", "g", "[f]"):
        assert storage.sizes_below(storage.join(root, name)) == {}


def fill(folder, *names):
    for name in names:
        publish_bytes(storage.join(folder, *name.split("/")), b"x")


def below(folder, paths):
    return [path.removeprefix(folder + "/") for path in paths]


def test_a_folder_gives_all_visible_files_below_it_sorted(root):
    fill(root, "b.txt", "a/z.txt", "a/deep/er/c.txt", ".hidden", "a/.hidden", ".git/config", "B.txt")
    assert below(root, list_files(root)) == ["B.txt", "a/deep/er/c.txt", "a/z.txt", "b.txt"]
    assert list_files(root + "/") == list_files(root)


def test_a_file_gives_itself_and_a_missing_name_nothing(root):
    fill(root, "a.txt", ".hidden")
    assert below(root, list_files(storage.join(root, "a.txt"))) == ["a.txt"]
    assert below(root, list_files(storage.join(root, ".hidden"))) == [".hidden"]  # asked for by name
    assert list_files(storage.join(root, "b.txt")) == []
    assert list_files(storage.join(root, "*.jsonl")) == []


def test_a_glob_gives_the_files_that_match_and_no_folders(root):
    fill(root, "a1.txt", "a2.txt", "a3.bin", "a4.txt/inner.bin", "c/a5.txt", "c/d/a6.txt")
    assert below(root, list_files(storage.join(root, "*.txt"))) == ["a1.txt", "a2.txt"]
    assert below(root, list_files(storage.join(root, "a[1-3].*"))) == ["a1.txt", "a2.txt", "a3.bin"]
    assert below(root, list_files(storage.join(root, "a?.bin"))) == ["a3.bin"]
    assert below(root, list_files(storage.join(root, "*", "a5.txt"))) == ["c/a5.txt"]
    assert below(root, list_files(storage.join(root, "**", "a6.txt"))) == ["c/d/a6.txt"]


ODD_NAMES = [
    "a[1].txt",
    "what?.txt",
    "star*.txt",
    "{a,b}.txt",
    "sp ace.txt",
    "ü#&=,.txt",
    "Foo::Bar.3pm",
    "::",
    "a%20b",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_exists_is_literal(root, name):
    fill(root, name, "a1.txt", "whats.txt", "stars.txt")
    assert below(root, list_files(storage.join(root, name))) == [name]
    assert name in below(root, list_files(root))
    assert read_bytes(storage.join(root, name)) == b"x"


@pytest.mark.parametrize(
    "name", [*ODD_NAMES, "line\nend", "caf\udce9", "http:", "s3:", "file:x", "memory", "~", "~root", "a:b", "x::y::z"]
)
def test_any_name_on_a_local_disk_is_literal(tmp_path, monkeypatch, name):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / name).write_bytes(b"y")
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    for path in (name, str(tmp_path / name)):
        assert list_files(path) == [str(tmp_path / name)]
        assert read_bytes(path) == b"x"
        assert storage.is_local(path) and storage.exists(path) and not storage.is_folder(path)
    assert [read_bytes(path) for path in list_files("inner")] == [b"y"]


def test_colons_chain_before_another_protocol_alone(tmp_path):
    assert storage.resolve("simplecache::memory://a/b")[0].protocol == "simplecache"
    assert storage.resolve("memory://a::b/c")[1] == "/a::b/c"
    publish_bytes(str(tmp_path / "new::name"), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["new::name"]


def test_a_folder_that_exists_is_literal(root):
    fill(root, "part[0]/x.txt", "part0/y.txt")
    assert below(root, list_files(storage.join(root, "part[0]"))) == ["part[0]/x.txt"]


def test_a_folder_below_a_hidden_one_gives_its_files(root):
    """Hidden is judged from the folder that is asked for, not from the root."""
    fill(root, ".cache/data/a.txt", ".cache/data/.b.txt")
    assert below(root, list_files(storage.join(root, ".cache", "data"))) == [".cache/data/a.txt"]


def test_a_link_to_a_folder_is_followed_once(tmp_path):
    fill(str(tmp_path), "data/b/x.txt", "data/z.txt", "elsewhere/sub/y.txt", "elsewhere/.hidden/h.txt")
    data = tmp_path / "data"
    (data / "a").symlink_to("b")  # read where it really lies
    (data / "b" / "up").symlink_to(data)
    (data / "link1").symlink_to(tmp_path / "elsewhere")
    (data / "link2").symlink_to(tmp_path / "elsewhere" / "sub")
    (tmp_path / "elsewhere" / "sub" / "back").symlink_to(data)
    assert below(str(data), list_files(str(data))) == ["b/x.txt", "link1/sub/y.txt", "z.txt"]
    assert below(str(data), list_files(f"{data}/**/*.txt")) == [
        "b/x.txt",
        "link1/.hidden/h.txt",
        "link1/sub/y.txt",
        "z.txt",
    ]
    assert below(str(data), list_files(f"{data}/a/*")) == ["a/x.txt"]


def test_what_is_no_file_is_found_and_not_opened(tmp_path):
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = [str(tmp_path / "dangling"), str(tmp_path / "pipe")]
    assert list_files(str(tmp_path)) == list_files(f"{tmp_path}/*") == found
    with pytest.raises(FileNotFoundError):
        storage.file_status(found[0])
    with pytest.raises(ConfigError, match=f"^{tmp_path}/pipe is a pipe, needed a file; leave it out"):
        storage.file_status(found[1])
    with pytest.raises(ConfigError, match=r"^/dev/null is a device, needed a file"):
        storage.file_status("/dev/null")


@pytest.mark.parametrize("pattern", ["", "/*.txt", "/**", "/**/*.txt", "/a/locked/b.txt", "/a/locked/*"])
def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, pattern):
    fill(str(tmp_path), "a/locked/b.txt", "a/c.txt", "d.txt")
    locked = str(tmp_path / "a" / "locked")
    if pattern == "/*.txt":  # which does not look into it
        locked = str(tmp_path)

    def lock(call):
        def locked_call(path, *args, **kwargs):
            if str(path) == locked or str(path).startswith(locked + "/"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *args, **kwargs)

        return locked_call

    monkeypatch.setattr(os, "scandir", lock(os.scandir))
    if pattern.startswith("/a/locked"):
        monkeypatch.setattr(os, "stat", lock(os.stat))
        monkeypatch.setattr(os, "lstat", lock(os.lstat))
    with pytest.raises(ConfigError, match=rf"^{locked}\S* cannot be read \(Permission denied\); mend its rights"):
        list_files(str(tmp_path) + pattern)


def test_a_file_is_one_by_whatever_name(tmp_path):
    fill(str(tmp_path), "a.txt", "b.txt", "c/d.txt")
    (tmp_path / "link").symlink_to("a.txt")
    (tmp_path / "hard").hardlink_to(tmp_path / "a.txt")
    (tmp_path / "e").symlink_to("c")

    def status(name):
        return storage.file_status(str(tmp_path / name))

    assert status("a.txt") == status("link") == status("hard") != status("b.txt")
    assert status("c/d.txt") == status("e/d.txt")
    assert status("a.txt").size_bytes == 1


def test_an_object_stores_names_can_be_opened_as_listed(memory):
    fill(memory, "a.txt", "b/c.txt")
    found = list_files(memory)
    assert all(path.startswith("memory://") for path in found)
    assert [read_bytes(path) for path in found] == [b"x", b"x"]


# --- the small ones


def test_lines_are_added(root):
    path = storage.join(root, "a.jsonl")
    storage.make_folder(root)
    for line in ("one", "zwölf", ""):
        storage.append_line(path, line)
    assert read_bytes(path) == "one\nzwölf\n\n".encode()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "a").touch()
    for name in ("a", "a/b"):
        with pytest.raises(ConfigError, match=f"^{tmp_path}/{name} cannot be written"):
            storage.make_folder(str(tmp_path / name))


def test_a_chain_to_what_is_not_there_is_told(tmp_path):
    for end in (tmp_path, tmp_path / "none.zip"):
        with pytest.raises(ConfigError, match=r"^zip://a::file://\S* cannot be reached"):
            storage.exists(f"zip://a::file://{end}")


def test_a_protocol_that_nobody_knows_is_told():
    with pytest.raises(ConfigError, match=r"^nowhere://a cannot be reached"):
        storage.exists("nowhere://a")


def test_join_takes_a_folder_with_or_without_its_slash():
    assert storage.join("a", "b", "c") == storage.join("a/", "b", "c") == "a/b/c"
    assert storage.join("memory://x") == "memory://x"


def test_kinds_of_paths(root):
    path = storage.join(root, "sub", "a.txt")
    publish_bytes(path, b"x")
    assert storage.is_folder(storage.join(root, "sub"))
    assert not storage.is_folder(path)
    assert storage.is_local(path) == ("://" not in root)


def test_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/../b") == str(tmp_path / "b")
    assert storage.absolute(f"file://{tmp_path}/b") == str(tmp_path / "b")
    assert storage.absolute("memory://a/b") == "memory://a/b"


def test_the_head_of_a_file_and_no_more(root):
    path = storage.join(root, "a")
    publish_bytes(path, b"abcdef")
    assert [storage.read_head(path, num_bytes) for num_bytes in (1, 4, 6, 100)] == [b"a", b"abcd", b"abcdef", b"abcdef"]


def test_a_range_of_a_file_and_no_more(root):
    path = storage.join(root, "a")
    publish_bytes(path, b"abcdef")
    assert [storage.read_range(path, *each) for each in ((0, 1), (2, 5), (5, 6))] == [b"a", b"cde", b"f"]


def test_make_folder_leaves_one_that_exists(tmp_path):
    folder = str(tmp_path / "a" / "b")
    storage.make_folder(folder)
    publish_bytes(f"{folder}/c", b"x")
    storage.make_folder(folder)
    assert read_bytes(f"{folder}/c") == b"x"


def test_remove_takes_what_is_there_and_what_is_not(root):
    path = storage.join(root, "a.txt")
    publish_bytes(path, b"x")
    storage.remove(path)
    assert not storage.exists(path)
    storage.remove(path)


@pytest.mark.parametrize("size_bytes", [0, 1, 1 << 18, (2 << 18) + 1])
def test_sha256_is_of_the_whole_file(root, size_bytes):
    content = bytes(range(256)) * (size_bytes // 256) + b"x" * (size_bytes % 256)
    path = storage.join(root, "a.bin")
    publish_bytes(path, content)
    assert storage.sha256(path) == hashlib.sha256(content).hexdigest()


# --- the digest of what passes


def test_a_digesting_file_knows_what_passed():
    beneath = io.BytesIO()
    file = DigestingFile(beneath)
    assert file.tell() == 0
    assert file.sha256() == hashlib.sha256(b"").hexdigest()
    assert [file.write(part) for part in (b"one", b"", b"three")] == [3, 0, 5]
    assert file.tell() == 8
    assert beneath.getvalue() == b"onethree"
    assert file.sha256() == hashlib.sha256(b"onethree").hexdigest()
    assert not file.closed


def test_a_digesting_file_flushes_the_one_beneath(tmp_path):
    with (tmp_path / "a").open("wb") as beneath:
        file = DigestingFile(beneath)
        file.write(b"buffered")
        assert (tmp_path / "a").read_bytes() == b""
        file.flush()
        assert (tmp_path / "a").read_bytes() == b"buffered"


def test_an_absolute_path_is_the_same_as_pathlib_has_it():
    parts = ("/", ".", "a", "..", "\n")
    for path in ("/" + "".join(each) for length in range(1, 5) for each in itertools.product(parts, repeat=length)):
        assert storage.resolve(path)[1] == str(Path(path))

import subprocess

import pytest

from kernels.cpu import build
from kernels.cpu.build import CompilerError, build_all, built_library
from tests.kernels.cpu.native_marks import needs_native


def test_without_a_compiler_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    with pytest.raises(CompilerError, match=r"no C\+\+ compiler"):
        built_library(folder=tmp_path)


@needs_native
def test_a_failing_compiler_is_quoted_and_leaves_nothing(tmp_path, monkeypatch):
    source = tmp_path / "broken.cpp"
    source.write_text("this is no program")
    monkeypatch.setattr(build, "SOURCE", source)
    with pytest.raises(CompilerError, match=r"failed: .*broken\.cpp"):
        built_library(folder=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@needs_native
def test_what_is_compiled_already_is_used(tmp_path, monkeypatch):
    first = built_library(folder=tmp_path)
    monkeypatch.setattr(subprocess, "run", None)
    assert built_library(folder=tmp_path) == first


@needs_native
def test_an_image_gets_the_kernels_of_every_processor(tmp_path):
    made = build_all(tmp_path)
    assert len(made) == len({path.name for path in made})
    assert built_library(folder=tmp_path) in made


def test_a_folder_that_cannot_be_written_is_an_error_of_its_own(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CompilerError, match=r"compiling the CPU kernels failed|no C\+\+ compiler"):
        built_library(folder=blocked / "cache")

"""scripts/package.sh: what is unpacked runs by itself; scripts/bench_gpu.sh there and in the tree."""

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
# Of the system: glibc, the compiler's, and on a GPU machine the driver's.
SYSTEMS = r"/(ld-linux-x86-64|lib(c|m|dl|pthread|rt|util|resolv|stdc\+\+|gcc_s|cuda|nvidia-.*))\.so"


def bench(root, environment, folder, *flags):
    """Its JSON."""
    command = [root / "scripts" / "bench_gpu.sh", "--tiny", "--out", folder, *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parent)
    if done.returncode != 0:
        raise AssertionError(f"{done.returncode}\n{done.stdout}\n{done.stderr}")
    return json.loads((folder / "bench_gpu.json").read_text()), done.stdout


class Package(unittest.TestCase):
    """Unpacked once, in an empty folder, used with an empty environment."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="package.")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.dir = Path(cls.folder.name)
        cls.archive = cls.dir / "package.tar.xz"
        cls.pack(cls.archive, expect=0)
        subprocess.run(["tar", "-C", cls.dir, "-xf", cls.archive], check=True)
        cls.root = cls.dir / "coppice"
        cls.environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(cls.dir),
            "COPPICE_PYTHON": sys.executable,
        }

    @classmethod
    def pack(cls, *arguments, expect):
        command = [SOURCE / "scripts" / "package.sh", *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
        return done

    def launch(self, *arguments, expect=0, **environment):
        done = subprocess.run(
            [self.root / "coppice.sh", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=self.environment | environment,
            cwd=self.dir,
        )
        self.assertEqual(done.returncode, expect, done.stdout + done.stderr)
        return done

    def test_travels_in_64_mib(self):
        self.assertLess(self.archive.stat().st_size, 64 << 20)

    def test_what_is_too_large_is_refused_with_what_is_large(self):
        done = self.pack(self.dir / "large.tar.zst", "--max-mib", "1", expect=1)
        self.assertIn("bin/coppice", done.stderr)
        self.assertFalse((self.dir / "large.tar.zst").exists())

    def test_another_suffix_and_a_missing_build_are_refused(self):
        self.assertIn(".tar.xz", self.pack(self.dir / "package.zip", expect=2).stderr)
        done = self.pack(self.dir / "x.tar.xz", "--build", "nowhere", expect=2)
        self.assertIn("scripts/build.sh", done.stderr)

    def test_the_program_prunes_and_reconstructs(self):
        self.assertRegex(self.launch("--version").stdout, r"^\d+\.\d+")
        model = self.dir / "model"
        subprocess.run(
            [sys.executable, self.root / "scripts/make_synthetic.py", model, "--tokens", "512"],
            check=True,
            capture_output=True,
        )
        self.launch(
            *("run", "--model", model, "--dataset", model / "tokens.h5", "-o", self.dir / "out"),
            *("--nsamples", 8, "--seqlen", 32, "--probe", "false", "--quiet"),
            *("--recipe", self.root / "configs/recipes/wanda-50.yaml"),
        )
        report = json.loads((self.dir / "out/coppice_report.json").read_text())
        self.assertEqual(len(report["blocks"]), 4)

    def test_test_programs_run(self):
        programs = sorted((self.root / "tests").iterdir())
        names = [program.name for program in programs]
        self.assertIn("stages_ops_mask_select_test", names)
        self.assertIn("pipeline_device_device_test", names)
        done = self.launch("--exec", self.root / "tests/pipeline_device_device_test")
        self.assertIn("[  PASSED  ]", done.stdout)
        done = self.launch("--exec", self.root / "bin/ops_bench", "cpu", 64, 128)
        self.assertIn("mask 2:4", [result["op"] for result in json.loads(done.stdout)])

    def test_libraries_are_the_packages_torchs_or_glibcs(self):
        torch = Path(self.torch_folder())
        brought = (f"{self.root}/", f"{torch}/", f"{torch.parent}/nvidia/")
        path = self.launch("--env").stdout.strip().removeprefix("LD_LIBRARY_PATH=")
        environment = self.environment | {"LD_LIBRARY_PATH": path, "LD_DEBUG": "libs"}
        loaded, tried = set(), set()
        for program in (self.root / "bin/coppice", *(self.root / "tests").iterdir()):
            dynamic = subprocess.run(["readelf", "-d", program], capture_output=True, text=True)
            self.assertEqual(re.findall(r"R(?:UN)?PATH.*\[(.*)\]", dynamic.stdout), ["$ORIGIN/../lib"])
            # The loader itself tells where it looked and what it took.
            arguments = ["--gtest_list_tests"] if program.parent.name == "tests" else ["--version"]
            done = subprocess.run(
                [program, *arguments], capture_output=True, text=True, env=environment
            )
            self.assertEqual(done.returncode, 0, done.stderr[-1000:])
            loaded |= set(re.findall(r"calling init:\s*(\S+)", done.stderr))
            tried |= set(re.findall(r"trying file=(\S+)", done.stderr))
        self.assertTrue(any(path.startswith(f"{self.root}/lib/libhdf5") for path in loaded))
        for path in map(os.path.normpath, loaded):
            if not path.startswith(brought):
                self.assertRegex(path, SYSTEMS)
        for path in map(os.path.normpath, tried):
            self.assertFalse(path.startswith(f"{SOURCE}/build/"), path)

    def torch_folder(self):
        line = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
        done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def test_a_python_without_torch_or_with_another_is_refused(self):
        said = self.launch("--version", expect=2, COPPICE_PYTHON="/nowhere/python").stderr
        self.assertIn("COPPICE_PYTHON", said)
        fake = self.dir / "site" / "torch"
        fake.mkdir(parents=True)
        (fake / "__init__.py").write_text("")
        (fake / "version.py").write_text("__version__ = '1.0.0'\n")
        said = self.launch("--version", expect=2, PYTHONPATH=str(fake.parent)).stderr
        self.assertIn("1.0.0", said)
        self.assertIn("built with torch", said)

    def test_a_glibc_too_old_is_said_with_both_versions(self):
        needs = json.loads((self.root / "package.json").read_text())
        changed = self.dir / "older"
        (changed / "lib").mkdir(parents=True)
        (changed / "package.json").write_text(json.dumps(needs | {"glibc": "99.1"}))
        script = self.root / "scripts/library_path.py"
        done = subprocess.run([sys.executable, script, changed], capture_output=True, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn("glibc 99.1 or newer", done.stderr)

    def test_its_libstdcxx_is_taken_only_where_the_systems_is_older(self):
        self.assertNotIn("libstdcxx", self.launch("--env").stdout)
        needs = json.loads((self.root / "package.json").read_text())
        changed = self.dir / "newer"
        changed.mkdir()
        newer = needs | {"libstdcxx": "GLIBCXX_9.9.9"}
        (changed / "package.json").write_text(json.dumps(newer))
        script = self.root / "scripts/library_path.py"
        done = subprocess.run([sys.executable, script, changed], capture_output=True, text=True)
        self.assertTrue(done.stdout.startswith(f"{changed}/lib/libstdcxx:"), done)

    def test_the_bench_runs_in_it(self):
        flags = ("--only", "2 blocks")
        found, _ = bench(self.root, self.environment, self.dir / "bench", *flags)
        self.assertEqual(found["steps"]["half-blocks, 2 blocks"]["status"], "done")
        self.assertEqual(found["steps"]["sparsegpt, 2 blocks"]["status"], "done")


class Bench(unittest.TestCase):
    """Every step, tiny, on the processor, in the source tree."""

    def test_every_step_has_a_result_or_says_that_it_wants_a_gpu(self):
        with tempfile.TemporaryDirectory(prefix="bench_gpu.") as folder:
            found, printed = bench(SOURCE, dict(os.environ), Path(folder) / "out")
        steps = found["steps"]
        self.assertEqual(len(steps), 12)
        self.assertEqual(steps.pop("gpu")["status"], "skipped")
        for name, step in steps.items():
            self.assertEqual(step["status"], "done", f"{name}: {step['why']}")
            self.assertIn(f"| {name} | ", printed)
        self.assertGreater(steps["tests"]["passed"], 50)
        self.assertEqual(len(set(steps["same bytes"]["sha256"].values())), 1)
        self.assertGreater(steps["same bytes"]["shards_when_killed"], 0)
        timed = {result["op"]: result for result in steps["kernels"]["kernels"]}
        self.assertGreater(timed["masked AdamW"]["aten_seconds"], 0)
        self.assertGreater(min(result["seconds"] for result in timed.values()), 0)
        four = steps["half-blocks, 4 blocks"]
        self.assertEqual(four["blocks"], 4)
        self.assertEqual(four["report"]["calibration"]["tokens"], 16 * 64)
        for stage in ("calibrate", "prune", "reconstruct"):
            self.assertGreater(four["stages"][stage]["seconds"], 0)
        for name, theirs in steps["sparsegpt beside plain PyTorch"]["reference"].items():
            self.assertAlmostEqual(theirs["zeros"], 0.5, places=2, msg=name)
        self.assertEqual(len(steps["whole model, planned"]["plan"]["stages"]) > 2, True)
        self.assertEqual(steps["half-blocks, more text"]["report"]["calibration"]["nsamples"], 64)


if __name__ == "__main__":
    unittest.main()

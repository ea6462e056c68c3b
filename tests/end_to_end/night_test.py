"""What may happen to a run in the night, and must not cost it."""

import json
import os
import shutil
import signal
import subprocess
import time
import unittest
from pathlib import Path

from support import PROGRAM, ProgramTest, shards


class Night(ProgramTest):
    KEYS = {"nsamples": 64, "epochs": 8}

    def setUp(self):
        super().setUp()
        self.data = self.tokens(64 * 32)

    def arguments(self, output, **keys):
        return self.run_arguments(self.model(), self.data, output, **(self.KEYS | keys))

    def golden(self):
        self.coppice(*self.arguments(self.dir / "golden"))
        return shards(self.dir / "golden")

    def started(self, arguments, **kwargs):
        """The process, once its first block is done."""
        process = subprocess.Popen(
            [PROGRAM, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, cwd=self.dir, **kwargs,
        )
        self.addCleanup(process.kill)
        self.assertIn("block 1/", process.stderr.readline())
        return process

    def killed(self, output, **keys):
        process = self.started(self.arguments(output, **keys))
        process.kill()
        process.communicate()

    def test_whoever_reads_the_messages_may_go(self):
        process = self.started(self.arguments("out"))
        process.stderr.close()
        self.assertEqual(process.wait(), 0)
        self.assertEqual(shards(self.dir / "out"), self.golden())

    def test_a_terminal_that_goes_away_stops_it_like_a_signal(self):
        process = self.started(self.arguments("out"))
        process.send_signal(signal.SIGHUP)
        said = process.communicate()[1]
        self.assertEqual(process.returncode, 130, said)
        self.assertIn("--resume", said)

    def test_what_was_started_to_outlive_the_terminal_does(self):
        ignored = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
        process = self.started(self.arguments("out"), preexec_fn=ignored)
        process.send_signal(signal.SIGHUP)
        self.assertEqual(process.wait(), 0)

    def test_a_name_that_is_no_text_costs_no_report(self):
        name = os.fsdecode(b"o_\xe9")
        arguments = self.arguments(name, nsamples=8, epochs=1)
        subprocess.run(
            [PROGRAM, *map(os.fsencode, map(str, arguments))], check=True, cwd=self.dir,
            capture_output=True,
        )  # fmt: skip
        report = (self.dir / name / "coppice_report.json").read_text(encoding="utf-8")
        self.assertIn("o_\N{REPLACEMENT CHARACTER}", report)

    def test_a_slash_behind_the_output_moves_nothing(self):
        self.killed("out/")
        self.assertTrue((self.dir / "out.work" / "journal.bin").exists())
        self.assertEqual(list((self.dir / "out").glob(".*")), [])
        self.coppice(*self.arguments("out", resume=True))

    def test_hidden_states_that_were_damaged_are_made_again(self):
        golden = self.golden()
        self.killed("out")
        boundaries = sorted((self.dir / "out.work").glob("dense.*.h5"))
        self.assertTrue(boundaries)
        for path in boundaries:
            damaged = bytearray(path.read_bytes())
            middle = len(damaged) // 2
            damaged[middle : middle + 4] = bytes(255 - b for b in damaged[middle : middle + 4])
            path.write_bytes(damaged)
        said = self.coppice(*self.arguments("out", resume=True)).stderr
        self.assertIn("made again", said)
        self.assertEqual(shards(self.dir / "out"), golden)

    def test_what_is_not_of_the_run_is_never_written_to(self):
        self.killed("out", work_dir="work")
        precious = self.dir / "precious"
        shutil.copytree(self.model(), precious)
        before = {path: path.read_bytes() for path in precious.iterdir()}
        keys = {"work_dir": "work", "resume": True}
        said = self.coppice(*self.arguments("precious", **keys), expect=2).stderr
        self.assertIn("precious: not empty", said)
        self.assertEqual({path: path.read_bytes() for path in precious.iterdir()}, before)
        said = self.coppice(*self.arguments(self.model(), **keys), expect=2).stderr
        self.assertIn("the model itself", said)

    def test_another_description_is_another_run(self):
        keys = {"architecture": "described.yaml"}
        known = Path(__file__).resolve().parents[2] / "configs" / "architectures" / "llama.yaml"
        described = self.dir / "described.yaml"
        described.write_text(known.read_text())
        self.killed("out", **keys)
        described.write_text(known.read_text() + "\n# changed\n")
        said = self.coppice(*self.arguments("out", resume=True, **keys), expect=2).stderr
        self.assertIn("another architecture", said)

    def test_a_finished_output_that_was_removed_is_made_again(self):
        golden = self.golden()
        shutil.rmtree(self.dir / "golden")
        self.coppice(*self.arguments(self.dir / "golden", resume=True))
        self.assertEqual(shards(self.dir / "golden"), golden)

    def test_whatever_was_removed_of_a_finished_output_is_made_again(self):
        keys = {"nsamples": 8, "epochs": 1, "export_masks": "true"}
        self.coppice(*self.arguments("out", **keys))
        out = self.dir / "out"
        whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for name in (
            *("config.json", "recipe.yaml", "README.md", "model-00002-of-00004.safetensors"),
            *("masks/model.safetensors.index.json", "masks/model-00002-of-00003.safetensors"),
        ):
            (out / name).unlink()
            said = self.coppice(*self.arguments("out", resume=True, **keys)).stderr
            self.assertNotIn("finished already", said, name)
            for path, data in whole.items():
                same = path.suffix in (".safetensors", ".yaml") or path.name == "config.json"
                self.assertTrue(path.exists(), path)
                self.assertTrue(not same or path.read_bytes() == data, path)
        said = self.coppice(*self.arguments("out", resume=True, **keys)).stderr
        self.assertIn("finished already", said)
        (self.dir / "out.work" / "coppice_report.json").unlink()
        said = self.coppice(*self.arguments("out", resume=True, **keys)).stderr
        self.assertTrue((self.dir / "out.work" / "coppice_report.json").exists())

    def test_a_repair_that_was_killed_is_continued(self):
        self.coppice(*self.arguments("out"))
        (self.dir / "out" / "config.json").unlink()
        for shard in (self.dir / "out").glob("model-*"):
            shard.unlink()
        self.killed("out", resume=True)
        self.coppice(*self.arguments("out", resume=True))
        self.assertTrue((self.dir / "out" / "config.json").exists())
        self.assertEqual(shards(self.dir / "out"), self.golden())

    def test_a_finished_run_leaves_no_scratch_behind(self):
        keys = {"nsamples": 8, "epochs": 1}
        self.coppice(*self.arguments("out", **keys))
        # As if it had been killed behind its last record.
        scratch = [self.dir / "out.work" / name for name in ("dense.2.h5", "held_out.2.safetensors")]
        for path in scratch:
            path.write_bytes(b"hidden states")
        self.coppice(*self.arguments("out", resume=True, **keys))
        self.assertFalse([path for path in scratch if path.exists()])

    def test_a_signal_before_the_first_block_is_one_between_two(self):
        process = subprocess.Popen(
            [PROGRAM, *map(str, self.arguments("out", probe="true"))], text=True, cwd=self.dir,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.addCleanup(process.kill)
        while not (self.dir / "out.work" / "journal.bin").exists():
            time.sleep(0.001)
        time.sleep(0.05)  # the disk, the codec and a product are being measured
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
        self.assertEqual(process.returncode, 130, said)
        self.assertIn("--resume", said)
        self.coppice(*self.arguments("out", probe="true", resume=True))

    def test_a_second_run_into_the_same_output_is_refused(self):
        process = self.started(self.arguments("out"))
        self.coppice(*self.arguments("out", work_dir="elsewhere"), expect=2)
        self.assertEqual(process.wait(), 0)
        self.assertEqual(shards(self.dir / "out"), self.golden())

    def test_a_refused_command_leaves_the_timeline(self):
        self.coppice(*self.arguments("out", nsamples=8, trace="trace.json"))
        before = (self.dir / "trace.json").read_bytes()
        self.coppice(*self.arguments("out", nsamples=8, trace="trace.json"), expect=2)
        self.assertEqual((self.dir / "trace.json").read_bytes(), before)
        keys = {"nsamples": 8, "trace": "trace.json", "resume": True}
        self.coppice(*self.arguments("out", sparsity=0.7, **keys), expect=2)
        self.coppice(*self.arguments("out", **keys))  # finished already
        self.assertEqual((self.dir / "trace.json").read_bytes(), before)

    def test_timeline_and_work_may_lie_in_the_output(self):
        (self.dir / "out").mkdir()
        keys = {"trace": "out/trace.json", "work_dir": "out/deep/work", "nsamples": 8}
        (self.dir / "out" / "trace.json").write_text("[]")  # of an earlier try
        self.coppice(*self.arguments("out", ram_budget="1MiB", **keys), expect=5)
        self.coppice(*self.arguments("out", **keys))
        self.assertTrue((self.dir / "out" / "model.safetensors.index.json").exists())

    def test_what_could_not_be_printed_is_an_error(self):
        with open("/dev/full", "w") as full:
            process = subprocess.run(
                [PROGRAM, "plan", *map(str, self.arguments("out")[1:]), "--json"],
                stdout=full, stderr=subprocess.PIPE, text=True, cwd=self.dir,
            )  # fmt: skip
        self.assertEqual(process.returncode, 3, process.stderr)
        self.assertIn("standard output", process.stderr)


class EvalNight(ProgramTest):
    def arguments(self, result):
        text = self.tokens(4 * 32)
        return ["eval", self.model(), "--text", text, "--seqlen", 32, "--json", result]

    def test_a_result_that_cannot_be_written_is_refused_before_the_work(self):
        said = self.coppice(*self.arguments("nowhere/eval.json"), expect=2)
        self.assertIn("no such directory", said.stderr)

    def test_what_is_no_file_is_written_to_and_not_replaced(self):
        os.mkfifo(self.dir / "pipe")
        reader = subprocess.Popen(["cat", self.dir / "pipe"], stdout=subprocess.PIPE, text=True)
        self.coppice(*self.arguments(self.dir / "pipe"))
        self.assertIn("perplexity", json.loads(reader.communicate()[0]))
        self.assertTrue((self.dir / "pipe").is_fifo())


if __name__ == "__main__":
    unittest.main()

"""A killed run continues, and writes the bytes an undisturbed one would have written."""

import subprocess
import sys
import unittest

from support import PROGRAM, SOURCE, ProgramTest, shards


class Resume(ProgramTest):
    KEYS = {"nsamples": 64, "epochs": 8}

    def arguments(self, output, **keys):
        model, tokens = self.model(), self.dir / "tokens.h5"
        if not tokens.exists():
            self.tokens(64 * 32)
        return self.run_arguments(
            model, tokens, self.dir / output, **(self.KEYS | keys)
        )

    def test_killed_at_any_moment_continues_to_the_same_bytes(self):
        self.check_kills(rounds=4)

    def test_what_the_pruned_prefix_hands_on_continues_as_well(self):
        for propagation, window in (("sparse", "half-block"), ("mixed", "half-block"), ("sparse", 2)):
            with self.subTest(propagation=propagation, window=window):
                self.check_kills(
                    rounds=1, propagation=propagation, window=window, nsamples=32, epochs=4
                )

    def test_a_window_of_several_blocks_continues_as_well(self):
        self.check_kills(rounds=2, window=2, nsamples=32, epochs=4, export_masks="true")

    def check_kills(self, rounds, **keys):
        tag = "".join(str(value) for value in keys.values())
        seconds = self.coppice(*self.arguments(f"undisturbed{tag}", **keys)).seconds
        golden = shards(self.dir / f"undisturbed{tag}")
        arguments = lambda output, resume: self.arguments(output, resume=resume, **keys)
        # A resumed run reports only the blocks it does.
        for output in self.continued_after_kills(arguments, rounds, seconds, f"killed{tag}"):
            self.assertEqual(shards(self.dir / output), golden)
            self.assertEqual(list((self.dir / output).glob("*.tmp")), [])
            masks = self.dir / f"undisturbed{tag}" / "masks"
            if masks.exists():
                self.assertEqual(shards(self.dir / output / "masks"), shards(masks))

    def test_sigterm_ends_with_130_and_the_command_that_continues(self):
        golden = self.dir / "undisturbed"
        self.coppice(*self.arguments("undisturbed"))
        process = subprocess.Popen(
            [PROGRAM, *map(str, self.arguments("stopped"))],
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.dir,
        )
        first_line = process.stderr.readline()  # a block is done
        self.assertIn("block 1/", first_line)
        process.terminate()
        said = process.communicate()[1]
        self.assertEqual(process.returncode, 130, said)
        self.assertIn("--resume", said)
        self.assertFalse(
            (self.dir / "stopped" / "model.safetensors.index.json").exists()
        )
        self.coppice(*self.arguments("stopped", resume=True))
        self.assertEqual(shards(self.dir / "stopped"), shards(golden))

    def test_work_directory_of_an_earlier_run_is_refused_without_resume(self):
        self.coppice(*self.arguments("out"))
        said = self.coppice(*self.arguments("out"), expect=2).stderr
        self.assertIn("--resume", said)

    def test_finished_run_says_so(self):
        self.coppice(*self.arguments("out"))
        before = shards(self.dir / "out")
        self.assertIn(
            "finished already", self.coppice(*self.arguments("out", resume=True)).stderr
        )
        self.assertEqual(shards(self.dir / "out"), before)

    def test_resume_without_an_earlier_run_starts_one(self):
        self.coppice(*self.arguments("out", resume=True))
        self.assertTrue((self.dir / "out" / "model.safetensors.index.json").exists())

    def interrupted(self, output):
        """A run that was killed when its first block was done."""
        process = subprocess.Popen(
            [PROGRAM, *map(str, self.arguments(output))],
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.dir,
        )
        process.stderr.readline()
        process.kill()
        process.communicate()

    def test_another_recipe_is_refused_and_named(self):
        self.interrupted("out")
        said = self.coppice(
            *self.arguments("out", resume=True, sparsity=0.6), expect=2
        ).stderr
        self.assertIn("prune.sparsity", said)

    def test_what_does_not_change_the_output_may_differ(self):
        self.coppice(*self.arguments("undisturbed"))
        self.interrupted("out")
        self.coppice(
            *self.arguments("out", resume=True, io_engine="pread", prefetch_blocks=3)
        )
        self.assertEqual(shards(self.dir / "out"), shards(self.dir / "undisturbed"))

    def test_hidden_states_that_nobody_will_read_are_gone_while_it_runs(self):
        model = self.dir / "deep"
        make = [sys.executable, SOURCE / "scripts" / "make_synthetic.py", model]
        subprocess.run([*make, "--blocks", "16", "--tokens", "512"], check=True, capture_output=True)
        left = []
        for lines in range(4, 16, 3):
            arguments = self.run_arguments(model, model / "tokens.h5", f"out{lines}")
            if self.kill_after(arguments, lines, 0):
                left.append(len(list((self.dir / f"out{lines}.work").glob("*.h5"))))
        self.assertGreater(len(left), 1, "nothing was killed before its end")
        self.assertGreater(max(left), 0)
        self.assertLessEqual(max(left), 6)  # of 17 between blocks and 16 inside

    def test_lost_shard_is_made_again(self):
        self.coppice(*self.arguments("undisturbed"))
        self.interrupted("out")
        for shard in (self.dir / "out").glob("model-00002-*"):
            shard.unlink()
        self.coppice(*self.arguments("out", resume=True))
        self.assertEqual(shards(self.dir / "out"), shards(self.dir / "undisturbed"))


if __name__ == "__main__":
    unittest.main()

"""A disk that fills up while a run is at work: it waits, or ends and can be continued."""

import subprocess
import time
import unittest

from support import PROGRAM, ProgramTest, shards

# A file system of its own, in a mount namespace that ends with the process.
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
WAITS = "while there && ! grep -q waiting messages; do sleep 0.05; done; "
SMALL_DISK = "mount -t tmpfs -o size=48m tmpfs small"


def can_mount():
    """Whether this machine lets us have such a file system."""
    probe = "mount -t tmpfs tmpfs /tmp && echo mounted"  # seen by nobody else
    try:
        done = subprocess.run([*NAMESPACE, "sh", "-c", probe], capture_output=True)
    except FileNotFoundError:
        return False
    return b"mounted" in done.stdout


@unittest.skipUnless(can_mount(), "no mount namespaces here")
class FullDisk(ProgramTest):
    def arguments(self, output, **keys):
        keys = {"nsamples": 64, "epochs": 4, "work_dir": "small/scratch"} | keys
        return self.run_arguments(
            self.model(), self.tokens(64 * 32), output, **keys
        )

    def run_while_it_fills(self, arguments, then, output="out", filler="100m"):
        """Runs in the namespace; once the first shard is there, with the plan behind it, the disk

        is filled, then `then`. What lies on it in the end is copied to `kept`.
        """
        script = (
            f"mkdir small && {SMALL_DISK} && {{ {PROGRAM} $* 2>messages & pid=$!; }} && "
            "there() { kill -0 $pid 2>/dev/null; } && "
            f"while there && ! ls {output}/*.safetensors >/dev/null 2>&1; do sleep 0.01; done; "
            f"head -c {filler} /dev/zero >small/filler 2>/dev/null; "
            f"{then} wait $pid; echo $? >code; rm -f small/filler; cp -r small kept"
        )
        subprocess.run(
            [*NAMESPACE, "sh", "-c", script, "sh", *map(str, arguments)],
            cwd=self.dir,
            timeout=280,
            check=False,
        )
        return int((self.dir / "code").read_text()), (
            self.dir / "messages"
        ).read_text()

    def test_waits_for_room_and_goes_on(self):
        self.coppice(*self.arguments("plenty", work_dir="plenty.work"))
        code, messages = self.run_while_it_fills(
            self.arguments("out"),
            WAITS + "rm small/filler;",
        )
        self.assertEqual(code, 0, messages)
        self.assertIn("there is room again", messages)
        self.assertEqual(shards(self.dir / "out"), shards(self.dir / "plenty"))

    def test_an_output_without_room_is_waited_for(self):
        self.coppice(*self.arguments("plenty", work_dir="plenty.work"))
        code, messages = self.run_while_it_fills(
            self.arguments("small/out", work_dir="work"),
            WAITS + "rm small/filler;",
            output="small/out",
        )
        self.assertEqual(code, 0, messages)
        self.assertIn("small/out", messages)
        self.assertEqual(shards(self.dir / "kept/out"), shards(self.dir / "plenty"))

    def test_files_beside_the_shards_without_room_are_waited_for(self):
        (self.model() / "tokenizer.model").write_bytes(bytes(24 << 20))
        self.coppice(*self.arguments("plenty", work_dir="plenty.work"))
        code, messages = self.run_while_it_fills(  # room for every shard, and no more
            self.arguments("small/out", work_dir="work"),
            WAITS + "rm small/filler;",
            output="small/out",
            filler="30m",
        )
        self.assertEqual(code, 0, messages)
        self.assertIn("there is room again", messages)
        for name in ("tokenizer.model", "model.safetensors.index.json"):
            written = (self.dir / "kept/out" / name).read_bytes()
            self.assertEqual(written, (self.dir / "plenty" / name).read_bytes())

    def test_a_signal_while_room_is_waited_for_ends_with_the_command_that_continues(self):
        (self.model() / "tokenizer.model").write_bytes(bytes(24 << 20))
        self.coppice(*self.arguments("plenty", work_dir="plenty.work"))
        for filler in ("100m", "30m"):  # a block waits; the files beside the shards do
            output = f"small/out{filler}"
            keys = {"work_dir": f"work{filler}"}
            code, messages = self.run_while_it_fills(
                self.arguments(output, **keys), WAITS + "kill -TERM $pid;", output, filler
            )
            self.assertEqual(code, 130, messages)
            self.assertIn("--resume", messages)
            (self.dir / "kept").rename(self.dir / f"kept{filler}")
            (self.dir / "small").rmdir()
            continued = self.dir / f"kept{filler}" / f"out{filler}"
            self.assertFalse((continued / "model.safetensors.index.json").exists())

    def test_patience_ends_with_a_run_that_can_be_continued(self):
        self.coppice(*self.arguments("plenty", work_dir="plenty.work"))
        begin = time.monotonic()
        code, messages = self.run_while_it_fills(
            self.arguments("out", disk_wait=1), ""
        )
        self.assertEqual(code, 3, messages)
        self.assertLess(time.monotonic() - begin, 200)
        self.assertIn("--resume", messages)
        self.coppice(*self.arguments("out", work_dir="kept/scratch", resume=True))
        self.assertEqual(shards(self.dir / "out"), shards(self.dir / "plenty"))


if __name__ == "__main__":
    unittest.main()

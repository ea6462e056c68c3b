"""A traced run leaves a timeline that a viewer can read, and writes what an untraced one writes."""

import json
import unittest
from collections import defaultdict

from support import ProgramTest, tensors

# `upload` is a GPU's.
TRACKS = {
    "reads in flight",
    "codec decode",
    "codec encode",
    "compute",
    "waits for activations",
    "cache writes",
    "shard writes",
}


def nanoseconds(microseconds):
    return round(microseconds * 1000)


class Trace(ProgramTest):
    def traced(self, **keys):
        """The events of a run."""
        trace = self.dir / "trace.json"
        arguments = self.run_arguments(
            self.model(), self.tokens(300), self.dir / "out", trace=trace, **keys
        )
        self.coppice(*arguments)
        return json.loads(trace.read_text())

    def rows(self, events):
        """tid -> the name of its row."""
        return {
            e["tid"]: e["args"]["name"]
            for e in events
            if e["ph"] == "M" and e["name"] == "thread_name"
        }

    def slices(self, events):
        """Row -> [(begin, end, name)] in nanoseconds, an outer slice before those inside it."""
        rows, found = self.rows(events), defaultdict(list)
        for e in events:
            if e["ph"] == "X":
                begin = nanoseconds(e["ts"])
                end = nanoseconds(e["ts"] + e["dur"])
                found[rows[e["tid"]]].append((begin, end, e["name"]))
        for row in found.values():
            row.sort(key=lambda s: (s[0], -s[1]))
        return found

    def test_every_track_has_events_and_no_other_is_there(self):
        events = self.traced()
        rows = self.rows(events)
        used = {rows[e["tid"]].rstrip(" 0123456789") for e in events if e["ph"] != "M"}
        self.assertEqual(used, TRACKS)

    def test_slices_of_a_track_are_nested_or_apart(self):
        for row, slices in self.slices(self.traced()).items():
            open_ends = []
            for begin, end, name in slices:
                while open_ends and open_ends[-1] <= begin:
                    open_ends.pop()
                if open_ends:
                    self.assertLessEqual(end, open_ends[-1], f"{row}: {name}")
                open_ends.append(end)

    def test_every_read_that_begins_ends(self):
        begun, ended = {}, {}
        for e in self.traced():
            if e["ph"] in "be":
                pairs = begun if e["ph"] == "b" else ended
                self.assertNotIn(e["id2"]["local"], pairs)
                pairs[e["id2"]["local"]] = e
        self.assertTrue(begun)
        self.assertEqual(set(begun), set(ended))
        for number, begin in begun.items():
            self.assertLessEqual(begin["ts"], ended[number]["ts"])
            self.assertGreater(begin["args"]["bytes"], 0)

    def test_stages_lie_inside_the_step_of_their_block(self):
        compute = self.slices(self.traced())["compute"]
        steps = {s[2]: s for s in compute if s[2].endswith((": forward", ": adapt"))}
        for begin, end, name in compute:
            block, _, stage = name.partition(": ")
            if name in steps:
                continue
            step = steps[block + (": forward" if stage == "calibrate" else ": adapt")]
            self.assertLessEqual(step[0], begin, name)
            self.assertLessEqual(end, step[1], name)
        names = {s[2] for s in compute}
        self.assertLessEqual(
            {"block 0: calibrate", "block 1: prune", "block 1: reconstruct"}, names
        )

    def test_a_trace_changes_no_byte_of_the_output(self):
        self.traced()
        arguments = self.run_arguments(
            self.model(), self.tokens(300), self.dir / "plain"
        )
        self.coppice(*arguments)
        self.assertEqual(tensors(self.dir / "out"), tensors(self.dir / "plain"))

    def test_eval_writes_one_too(self):
        trace = self.dir / "trace.json"
        self.coppice("eval", self.model(), "--text", self.tokens(96), "--seqlen", 24, "--trace", trace)  # fmt: skip
        names = {s[2] for s in self.slices(json.loads(trace.read_text()))["compute"]}
        self.assertIn("block 0", names)

    def test_a_path_that_cannot_be_written_is_said_before_anything_is_made(self):
        trace = self.dir / "absent" / "trace.json"
        arguments = self.run_arguments(
            self.model(), self.tokens(300), self.dir / "out", trace=trace
        )
        said = self.coppice(*arguments, expect=3).stderr
        self.assertIn(str(trace), said)
        self.assertFalse((self.dir / "out").exists())
        self.assertFalse((self.dir / "out.work").exists())


class Waits(ProgramTest):
    """What waited for what, in the report."""

    def test_every_block_tells_its_waits_and_times(self):
        self.coppice(
            *self.run_arguments(self.model(), self.tokens(300), self.dir / "out")
        )
        told = json.loads((self.dir / "out" / "coppice_report.json").read_text())
        for block in told["blocks"]:
            self.assertEqual(
                set(block["waits"]),
                {
                    "compute_for_weights",
                    "compute_for_activations",
                    "compute_for_shard_buffer",
                    "reads_for_slot",
                },
            )
            self.assertEqual(
                set(block["times"]),
                {"read_seconds", "forward_seconds", "adapt_seconds", "store_seconds"},
            )
            for seconds in (*block["waits"].values(), *block["times"].values()):
                self.assertGreaterEqual(seconds, 0)
            for step in ("forward_seconds", "adapt_seconds", "store_seconds"):
                self.assertGreater(block["times"][step], 0)
            inside = block["times"]["forward_seconds"] + block["times"]["adapt_seconds"]
            self.assertLessEqual(block["waits"]["compute_for_activations"], inside)


if __name__ == "__main__":
    unittest.main()

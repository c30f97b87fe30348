"""Checks of a Chrome trace: valid by the rules of the Trace Event Format, every event inside its rank's step."""

# Of "Trace Event Format" (Google): what each kind of event must have, and the arguments of metadata.
COMPLETE = {"name": str, "cat": str, "ph": str, "ts": int, "dur": int, "pid": int, "tid": int, "args": dict}
METADATA = {"name": str, "ph": str, "pid": int, "tid": int, "args": dict}
METADATA_NAMES = {"process_name", "thread_name"}
TOP = {"traceEvents", "displayTimeUnit", "otherData"}


def require_valid(trace):
    """Assert that it is a trace in the format's "JSON object" form, of complete events and metadata alone."""
    assert set(trace) <= TOP and isinstance(trace["traceEvents"], list)
    assert trace["displayTimeUnit"] in ("ms", "ns")
    threads, named = {}, set()
    for event in trace["traceEvents"]:
        fields = {"X": COMPLETE, "M": METADATA}[event["ph"]]
        assert set(event) == set(fields), event
        assert all(type(event[name]) is kind for name, kind in fields.items()), event
        place = event["pid"], event["tid"]
        if event["ph"] == "M":
            assert event["name"] in METADATA_NAMES
            assert set(event["args"]) == {"name"} and event["args"]["name"]
            assert (event["name"], place) not in named
            named.add((event["name"], place))
        else:
            assert event["name"] and event["ts"] >= 0 and event["dur"] >= 0, event
            threads.setdefault(place, []).append((event["ts"], event["ts"] + event["dur"]))
    assert {place for name, place in named if name == "thread_name"} == set(threads)
    assert {place[0] for name, place in named if name == "process_name"} == {place[0] for place in threads}
    for spans in threads.values():
        require_nested(spans)


def require_nested(spans):
    """On one thread, two events must not overlap in part: either apart, or one within the other."""
    open_ends = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1], spans
        open_ends.append(end)


def spans(trace, process, name):
    """[(thread, start, end)] of the events with this name, in microseconds."""
    return [
        (event["tid"], event["ts"], event["ts"] + event["dur"])
        for event in trace["traceEvents"]
        if (event["ph"], event["pid"], event["name"]) == ("X", process, name)
    ]


def require_within_steps(trace, ranks):
    """Every event of a rank lies inside its one step."""
    for process in range(1, ranks + 1):
        [(_, start, end)] = spans(trace, process, "step")
        inside = [e for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == process]
        assert all(start <= e["ts"] and e["ts"] + e["dur"] <= end for e in inside)


def bytes_of(trace, process):
    return sum(e["args"].get("bytes", 0) for e in trace["traceEvents"] if e["pid"] == process)

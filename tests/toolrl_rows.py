"""Rows of our own in ToolRL's format, for tests that must run without the real ones."""

import json

THOUGHT = "<think> I look at what is asked. </think>"


def _system(tools: dict[str, dict]) -> str:
    blocks = [
        f"{i}. Name: {name}\nDescription: {name} does it.\nParameters: {json.dumps(schema)}"
        for i, (name, schema) in enumerate(tools.items(), start=1)
    ]
    return (
        "You help with tools.\n\n**Available Tools**\n" + "\n".join(blocks) + "\n\n**Output Format**\n"
        "<think> Your thoughts </think>\n<tool_call>\n"
        '{"name": "Tool name", "parameters": {"Parameter name": "Parameter content"}}\n'
        "</tool_call>\n<response> AI's final response </response>"
    )


def _row(tools: list[str], turns: str, gold: str) -> dict:
    schema = {"q": {"type": "string"}}
    return {
        "prompt": [
            {"role": "system", "content": _system(dict.fromkeys(tools, schema))},
            {"role": "user", "content": f"**Dialogue Records History**\n{turns}"},
        ],
        "gold": gold,
    }


def call_answer(*calls: dict, think: str = THOUGHT) -> str:
    """An answer in ToolRL's format that makes these calls."""
    lines = "\n".join(json.dumps(call, ensure_ascii=False) for call in calls)
    return f"{think}\n<tool_call>\n{lines}\n</tool_call>"


def call(name: str, **parameters) -> dict:
    return {"name": name, "parameters": parameters}


ROWS = [
    _row(  # one call
        ["tide_table", "ferry_times"],
        "<user> When is high tide in Husum on Friday? </user>",
        call_answer(call("tide_table", port="Husum", day="Friday")),
    ),
    _row(  # two calls of one tool
        ["tide_table", "ferry_times"],
        "<user> Ferries to Amrum and to Sylt, two people. </user>",
        call_answer(call("ferry_times", to="Amrum", people=2), call("ferry_times", to="Sylt", people=2)),
    ),
    _row(  # three calls, a number written as text
        ["Bean Stock ", "roast_plan", "ship_box"],
        "<user> Check page 1 of the stock, roast 2.5 kg and ship it. </user>",
        call_answer(
            call("Bean Stock ", page="1"),
            call("roast_plan", kilos=2.5, dark=True),
            call("ship_box", box="B-07", insured=None),
        ),
    ),
    _row(  # no call
        ["book_court"],
        "<user> Book a court. </user>",
        f"{THOUGHT}\n<response> For which day and hour shall I book? </response>",
    ),
    _row(  # no call, a long response
        ["sum_numbers"],
        "<user> What can you do? </user>",
        f"{THOUGHT}\n<response> I add numbers:\n- whole ones\n- and 3.14 </response>",
    ),
    _row(  # a call without parameters
        ["list_alarms", "mute_alarm"],
        "<user> Which alarms are on? </user>",
        call_answer(call("list_alarms")),
    ),
    _row(  # nested values
        ["draw_route"],
        "<user> Draw the route. </user>",
        call_answer(
            call(
                "draw_route",
                points=[[54.5, 9.0], [-1, "2"]],
                style={"colour": "grün", "width": 3, "dash": [1, 2, {"gap": False}]},
            )
        ),
    ),
    _row(  # history with an observation
        ["find_song", "play_song"],
        "<user> Play the newest song. </user>\n<think> I search first. </think>\n<tool_call>\n"
        '{"name": "find_song", "parameters": {"sort": "new"}}\n</tool_call>\n'
        "<obs> [{'id': 41}, {'id': 42}] </obs>",
        call_answer(call("play_song", id=42)),
    ),
    _row(  # names and keys that look alike
        ["a", "b"],
        "<user> Do a twice and b once. </user>",
        call_answer(call("a", x=1), call("a", x=1, y="1"), call("b", x="one", z=[])),
    ),
]


def as_record(row: dict, index: int = 0, split: str = "test") -> dict:
    """A row in the columns of the published files."""
    return {
        "data_source": "rlla",
        "prompt": row["prompt"],
        "ability": "math",
        "reward_model": {"ground_truth": row["gold"], "style": "rule"},
        "extra_info": {"index": index, "split": split},
    }


def write_parquet(path, rows=None) -> None:
    """Write rows, by default all of ROWS, in the columns of the published files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = ROWS if rows is None else rows
    pq.write_table(pa.Table.from_pylist([as_record(row, i) for i, row in enumerate(rows)]), path)

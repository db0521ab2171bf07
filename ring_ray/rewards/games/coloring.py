"""Graph coloring: neighbours have different colors."""

import json
from dataclasses import dataclass

import msgspec

from ring_ray.rewards.games.game import SOLVED, Entry, Finding, Game, UnparsableError, unsolved


@dataclass(frozen=True, slots=True)
class Graph:
    vertices: list[int]
    edges: list[tuple[int, int]]
    colors: list[int]


def judge(graph: Graph, text: str) -> Finding:
    try:
        color = msgspec.json.decode(text, type=dict[int, int])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise UnparsableError(f"the answer is no JSON map of vertices to colors: {error}") from error
    if color.keys() != set(graph.vertices):
        return unsolved("does not color exactly the vertices of the graph")
    if not set(color.values()) <= set(graph.colors):
        return unsolved("uses a color that is not possible")
    for one, other in graph.edges:
        if color[one] == color[other]:
            return unsolved(f"{one} and {other} are neighbours of the same color")
    return SOLVED


def _read(entry: Entry) -> Graph:
    puzzle = entry["metadata"]["puzzle"]
    return Graph(puzzle["vertices"], [tuple(edge) for edge in puzzle["edges"]], puzzle["color_options"])


GRAPH_COLOR = Game(
    dataset="graph_color",
    levels={
        "easy": {"min_num_vertices": 5, "max_num_vertices": 6, "edge_probability": 0.4},
        "medium": {"min_num_vertices": 8, "max_num_vertices": 10, "edge_probability": 0.3},
        "hard": {"min_num_vertices": 12, "max_num_vertices": 15, "edge_probability": 0.2},
    },
    instruction="Write only the JSON map.",
    record=Graph,
    read=_read,
    judge=judge,
    solution=lambda entry: json.dumps(entry["metadata"]["possible_answer"]),
)

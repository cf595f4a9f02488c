"""The mutations: which property, which edit, which test must fail, and with which words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """`edits`: (old, new) in `file`, each old text there once; `said`: words of the assertion that must fail."""

    id: str
    holds: str
    file: str
    edits: tuple[tuple[str, str], ...]
    test: str
    said: str


def mutation(
    id: str, holds: str, file: str, *edits: tuple[str, str], test: str, said: str
) -> Mutation:
    return Mutation(
        id=id,
        holds=holds,
        file=f"pipelines/{file}" if "/" not in file else file.removeprefix("./"),
        edits=edits,
        test=test,
        said=said,
    )


T1 = "test_train.py::test_t1_a_job_from_the_store_learns_and_leaves_its_model_there"
LIMIT = "test_train.py::test_t1_the_runtime_limit_leaves_a_checkpoint_that_goes_on"
RANK = "test_train.py::test_t2_a_rank_that_is_killed_costs_time_and_nothing_else"
KILLED = "test_train.py::test_t2_a_job_that_is_killed_goes_on_when_it_is_started_again"
T3 = "test_search.py::test_t3_early_termination_saves_four_fifths_and_keeps_the_best"
I1 = "test_infer.py::test_i1_every_tile_is_inferred_once_and_as_in_a_plain_loop"
NODES = "test_infer.py::test_i1_nodes_may_join_and_leave"
I2 = "test_infer.py::test_i2_a_run_that_is_killed_is_completed_by_the_next"
D1 = "test_ingest.py::test_d1_every_epoch_is_a_new_order_of_every_row[windowed]"
SHARES = "test_ingest.py::test_d1_trainers_get_equal_shares_that_are_together_everything"
MEMORY = "test_ingest.py::test_d1_memory_is_bound_by_the_window"
IDLE = "test_ingest.py::test_d1_the_trainer_waits_less_when_the_next_epoch_is_read_in_advance"
S2 = "test_stacked.py::test_s2_stacked_models_see_what_a_plain_loop_sees"
CRASH = "test_stacked.py::test_s2_a_stage_that_dies_loses_and_doubles_nothing"
A1 = "test_aerial.py::test_a1_crowns_are_learned_from_photographs_and_found_in_them"
P1 = "test_whole.py::test_p1_photographs_become_a_map_with_one_command"
S1 = "test_served.py::test_s1_eight_served_models_come_to_the_decision_of_a_plain_loop"
KEPT = "test_served.py::test_s1_what_is_kept_of_cases_is_bounded"
PROMOTE = "test_whole.py::test_p1_a_model_that_is_no_better_is_not_promoted"

MUTATIONS = (
    mutation(
        "H1",
        "a product is right to the tolerance of its type",
        "health.py",
        (
            "(left.to(device) @ right.to(device)).double()",
            "(left.to(device) @ right.to(device)).double().mul(1.1)",
        ),
        test="test_device.py::test_h1_a_product_is_right_in_every_type",
        said="is expected",
    ),
    mutation(
        "H1",
        "every byte of memory comes back",
        "health.py",
        (
            "memory.fill_((0x55 + number) % 256 ^ flipped)",
            "memory.fill_((0x55 + number) % 256 ^ flipped)[:1].zero_()",
        ),
        test="test_device.py::test_h1_memory_keeps_what_is_written",
        said="bytes that came back changed",
    ),
    mutation(
        "H1",
        "the sum over devices is exact",
        "health.py",
        ("        distributed.all_reduce(values)\n        error", "        error"),
        test="test_device.py::test_h1_devices_add_up",
        said="is off by",
    ),
    mutation(
        "H1",
        "numbers are as they were after a pinned test",
        "./numerics.py",
        ("        np.random.set_state(before[1])\n", ""),
        test="test_device.py::test_numbers_are_as_they_were_after_a_pinned_test",
        said="assert",
    ),
    mutation(
        "T1",
        "the loss falls",
        "train.py",
        (
            "self.config.learning_rate * (1 + math.cos(",
            "0 * self.config.learning_rate * (1 + math.cos(",
        ),
        test=T1,
        said="the loss did not fall",
    ),
    mutation(
        "T1",
        "each tile is read once an epoch",
        "tiles.py",
        (
            "in_order(lambda key: read(store, key), keys",
            "in_order(lambda key: (read(store, key), read(store, key))[0], keys",
        ),
        test=T1,
        said="a tile was read",
    ),
    mutation(
        "T1",
        "the workers' shares are apart",
        "train.py",
        ("[rank::world] for rank", "[0::world] for rank"),
        test=T1,
        said="a tile was read",
    ),
    mutation(
        "T1",
        "gradients are shared",
        "train.py",
        ("self.backward(forward or self.net, batch)", "self.backward(self.net, batch)"),
        test=T1,
        said="the workers have drifted apart",
    ),
    mutation(
        "T1",
        "two workers come to what a plain loop comes to",
        "train.py",
        (
            "permutation(count)\n",
            "permutation(count) if world == 1 or torch.distributed.is_initialized() else np.arange(count)\n",
        ),
        test=T1,
        said="other weights than a plain loop",
    ),
    mutation(
        "T1",
        "the artifact is the model that was trained",
        "job.py",
        ('"net": dict(weights)', '"net": {name: one * 1.01 for name, one in weights.items()}'),
        test=T1,
        said="model.pt holds other weights",
    ),
    mutation(
        "T1",
        "a wrong configuration is refused before a GPU is asked for",
        "job.py",
        (
            "if unknown := sorted(set(raw) - set(known)):",
            "if unknown := sorted(set(raw) - set(known) - set(raw)):",
        ),
        test="test_train.py::test_t1_a_wrong_configuration_is_refused_before_a_gpu_is_asked_for",
        said="KeyError",
    ),
    mutation(
        "T1",
        "the runtime limit stops it",
        "train.py",
        ("agreed(time.time() + took > job.until, world)", "agreed(False, world)"),
        test=LIMIT,
        said="was to stop",
    ),
    mutation(
        "T1",
        "an output is one job's",
        "job.py",
        (
            '        raise ConfigError(f"{job.output} holds another job',
            '        print(f"{job.output} holds another job',
        ),
        test=LIMIT,
        said="DID NOT RAISE",
    ),
    mutation(
        "T2",
        "what is resumed ends with the weights of the uninterrupted run",
        "train.py",
        ('        self.optimiser.load_state_dict(held["optimiser"])\n', ""),
        test=LIMIT,
        said="the stopped job went another way",
    ),
    mutation(
        "T2",
        "a rank that is killed is started again",
        "train.py",
        ("max_failures=failures", "max_failures=0"),
        test=RANK,
        said="the job ended with",
    ),
    mutation(
        "T2",
        "a job that is killed goes on from its checkpoint",
        "train.py",
        (
            "if (checkpoint := train.get_checkpoint()) is not None:",
            "if (checkpoint := None) is not None:",
        ),
        test=KILLED,
        said="the job began anew",
    ),
    mutation(
        "T2",
        "no checkpoint is torn",
        "train.py",
        (
            'folder / "training.pt")\n        np.save',
            'folder / "training.pt")\n        os.truncate(folder / "training.pt", 2000)\n        np.save',
        ),
        test=KILLED,
        said="Error",
    ),
    mutation(
        "T2",
        "only the newest checkpoints are kept",
        "train.py",
        ("num_to_keep=KEPT", "num_to_keep=None"),
        test=KILLED,
        said="checkpoints are kept",
    ),
    mutation(
        "T3",
        "four fifths of the epochs are saved",
        "search.py",
        ("REDUCTION = 4 ", "REDUCTION = 2 "),
        test=T3,
        said="of the epochs were saved",
    ),
    mutation(
        "T3",
        "the best configuration is kept",
        "search.py",
        ('mode="min"', 'mode="max"'),
        test=T3,
        said="the search ends at",
    ),
    mutation(
        "T3",
        "a trial is what it would have been alone",
        "search.py",
        ("    torch.manual_seed(seed)\n", "    torch.seed()\n"),
        test=T3,
        said="went another way",
    ),
    mutation(
        "I1",
        "each tile exactly once",
        "infer.py",
        ("list(tiles[at : at + size])", "list(tiles[at : at + size - 1])"),
        test=I1,
        said="not inferred exactly once",
    ),
    mutation(
        "I1",
        "a shard is bounded",
        "infer.py",
        ("list(tiles[at : at + size])", "list(tiles[at : at + size + 1])"),
        test=I1,
        said="are allowed",
    ),
    mutation(
        "I1",
        "files have the schema",
        "infer.py",
        (
            "probabilities).replace_schema_metadata(",
            'probabilities).append_column("n", pa.nulls(len(shard["tiles"]))).replace_schema_metadata(',
        ),
        test=I1,
        said="assert",
    ),
    mutation(
        "I1",
        "files name their model",
        "infer.py",
        ("MODEL_KEY: model.encode()", 'MODEL_KEY: b"unknown"'),
        test=I1,
        said="names another model",
    ),
    mutation(
        "I1",
        "files name their configuration",
        "infer.py",
        ("CONFIG_KEY: config.encode()", 'CONFIG_KEY: b"unknown"'),
        test=I1,
        said="names another configuration",
    ),
    mutation(
        "I1",
        "outputs are those of a plain loop",
        "infer.py",
        (
            "predict(self.net, images, self.device)",
            "(predict(self.net, images, self.device) * np.float32(0.9))",
        ),
        test=I1,
        said="disagree",
    ),
    mutation(
        "I1",
        "requests in flight are bounded",
        "infer.py",
        ("config.at_once // config.fetchers[1]", "config.at_once * 2"),
        test=I1,
        said="are allowed",
    ),
    mutation(
        "I1",
        "a store that is busy is asked again",
        "store.py",
        ("RETRIES = 8 ", "RETRIES = 0 "),
        test=I1,
        said="503",
    ),
    mutation(
        "I1",
        "a node may leave",
        "infer.py",
        (
            "self.store, self.at_once =",
            "assert not ray.get_runtime_context().was_current_actor_reconstructed; self.store, self.at_once =",
        ),
        test=NODES,
        said="was_current_actor_reconstructed",
    ),
    mutation(
        "I1",
        "a node that joins is given work",
        "infer.py",
        ("min_size=sizes[0], max_size=sizes[1]", "min_size=sizes[0], max_size=sizes[0]"),
        test=NODES,
        said="of the node that joined",
    ),
    mutation(
        "I2",
        "what is done is not done again",
        "infer.py",
        (" if file not in there\n", "\n"),
        test=I2,
        said="files were made again",
    ),
    mutation(
        "I2",
        "half a run is not taken for a whole one",
        "infer.py",
        ("    read(store, COMPLETE)\n", ""),
        test=I2,
        said="DID NOT RAISE",
    ),
    mutation(
        "D1",
        "every epoch is a permutation",
        "ingest.py",
        (".permutation(len(table))).combine", ".integers(0, len(table), len(table))).combine"),
        test=D1,
        said="is not a permutation",
    ),
    mutation(
        "D1",
        "epochs differ",
        "ingest.py",
        ("        order = np.random", "        number = 0\n        order = np.random"),
        test=D1,
        said="two epochs have the same order",
    ),
    mutation(
        "D1",
        "rows are mixed",
        "ingest.py",
        ("table.take(np.random.default_rng(seed).permutation(len(table)))", "table"),
        test=D1,
        said="windowed: Quality",
    ),
    mutation(
        "D1",
        "trainers get equal shares",
        "ingest.py",
        (
            "(len(table) // self.ranks), len(table) // self.ranks)",
            "(len(table) // self.ranks), len(table) // self.ranks - self.rank)",
        ),
        test=SHARES,
        said="the shares have",
    ),
    mutation(
        "D1",
        "memory is bound by the window",
        "ingest.py",
        (
            "held = [self.read(windows[0], number, 0)]",
            "held = [self.read(window, number, at) for at, window in enumerate(windows)]",
        ),
        ("if at + 1 < len(windows):", "if at < 0:"),
        test=MEMORY,
        said="windows were in memory at once",
    ),
    mutation(
        "D1",
        "the trainer waits less",
        "ingest.py",
        (
            "    made: queue.Queue[",
            "    yield from one_after_another(epochs, count)\n    return\n    made: queue.Queue[",
        ),
        test=IDLE,
        said="the trainer waited",
    ),
    mutation(
        "S2",
        "frames stay in order",
        "stacked.py",
        (
            "                yield ray.get(waiting.popleft())",
            "                yield ray.get(waiting.pop())",
        ),
        test=S2,
        said="out of order",
    ),
    mutation(
        "S2",
        "a frame shows what a plain loop sees",
        "stacked.py",
        (".remote(state, points)", ".remote(EMPTY, points)"),
        test=S2,
        said="the plain loop has",
    ),
    mutation(
        "S2",
        "frames in flight are bounded",
        "stacked.py",
        ("if len(waiting) >= in_flight:", "if len(waiting) >= 3 * in_flight:"),
        test=S2,
        said="were in the pipeline at once",
    ),
    mutation(
        "S2",
        "stages overlap",
        "stacked.py",
        (
            "            waiting.append(",
            "            ray.wait([tracks, speeds, kinds], num_returns=3)\n            waiting.append(",
        ),
        test=S2,
        said="nothing overlaps",
    ),
    mutation(
        "S2",
        "a stage may die",
        "stacked.py",
        ("max_restarts=-1, max_task_retries=-1", "max_restarts=0, max_task_retries=0"),
        test=CRASH,
        said="Error",
    ),
    mutation(
        "A1",
        "what is stored is worth something",
        "infer.py",
        ("predict(self.net, images, self.device)", "predict(self.net, images // 255, self.device)"),
        test=A1,
        said="no better than the commoner class",
    ),
    mutation(
        "P1",
        "the rate that was found is trained with",
        "whole.py",
        ("best(costs).trial", "costs[0].trial"),
        test=P1,
        said="another rate",
    ),
    mutation(
        "P1",
        "a worse model is not promoted",
        "whole.py",
        ("if found.iou <= before or", "if found.iou <= -before or"),
        test=PROMOTE,
        said="assert not",
    ),
    mutation(
        "S1",
        "a model starts when its own uploads are there",
        "served.py",
        (
            "        for kind in triggers:\n            await",
            "        for kind in UPLOADS:\n            await",
        ),
        test=S1,
        said="have answered, not",
    ),
    mutation(
        "S1",
        "no model begins before its inputs",
        "served.py",
        (
            "        began = time.time()\n        self.begun",
            "        began = time.time() - 5\n        self.begun",
        ),
        test=S1,
        said="before it had",
    ),
    mutation(
        "S1",
        "no model runs twice for a case",
        "served.py",
        (
            "response = model.remote(*(self.contents[kind] for kind in triggers))",
            "response = [model.remote(*(self.contents[kind] for kind in triggers)) for _ in range(2)][1]",
        ),
        test=S1,
        said="the models ran so often",
    ),
    mutation(
        "S1",
        "another content for the same upload is refused",
        "served.py",
        ("elif before != mark:", "elif False:"),
        test=S1,
        said="DID NOT RAISE",
    ),
    mutation(
        "S1",
        "a case whose time is over is forgotten",
        "served.py",
        (
            "if self.open.get(case.name) is case:",
            "if self.open.get(case.name) is case and not case.ended.exception():",
        ),
        test=S1,
        said="is still open",
    ),
    mutation(
        "S1",
        "what runs for a case that ended is cancelled",
        "served.py",
        ("            response.cancel()  # Serve", "            pass  # Serve"),
        test=S1,
        said="still under way for a case that has ended",
    ),
    mutation(
        "S1",
        "a model that fails is named",
        "served.py",
        (
            "        except Exception as error:\n            raise FailedModelError",
            "        except ZeroDivisionError as error:\n            raise FailedModelError",
        ),
        test=S1,
        said="the report has no line",
    ),
    mutation(
        "S1",
        "models of the API group run on its nodes",
        "served.py",
        ('f"{self.group}_models": 1', '"cpu_models": 1'),
        test=S1,
        said="its group has",
    ),
    mutation(
        "S1",
        "models of the GPU group run where GPUs are",
        "served.py",
        ('{"num_gpus": gpus}', '{"resources": {"cpu_models": 1}}'),
        test=S1,
        said="its group has",
    ),
    mutation(
        "S1",
        "cases do not mix",
        "served.py",
        ("        return self.open[case]\n", "        return next(reversed(self.open.values()))\n"),
        test=S1,
        said="was given another",
    ),
    mutation(
        "S1",
        "the decision is that of a plain loop",
        "served.py",
        ("value=self.function(*inputs)", "value=round(self.function(*inputs), 3)"),
        test=S1,
        said="served: Decision",
    ),
    mutation(
        "S1",
        "models run beside each other",
        "served.py",
        (
            "        response = model.remote(",
            "        time.sleep(0.1)\n        response = model.remote(",
        ),
        test=S1,
        said="nothing overlaps",
    ),
    mutation(
        "S1",
        "nothing is left on the cluster",
        "served.py",
        ("        serve.delete(APP)\n", ""),
        test=S1,
        said="still held when the app is gone",
    ),
    mutation(
        "S1",
        "what is kept of cases is bounded",
        "served.py",
        ("[: -self.kept]", "[:0]"),
        test=KEPT,
        said="the two last decisions are to be kept",
    ),
)

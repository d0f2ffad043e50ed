"""policy.py: backends chosen, refused and loaded; Unsloth and vLLM by stand-ins that do what their source says."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_qwen3 import small_config
from transformers import Qwen3ForCausalLM
from trl import GRPOConfig

from vpo_lab.config import get_profile
from vpo_lab.errors import LabError
from vpo_lab.train import gpu as machine
from vpo_lab.train.gpu import BACKENDS, check_backend, set_adapter, trl_arguments
from vpo_lab.train.policy import load_policy
from vpo_lab.train.prompts import SLACK, window
from vpo_lab.train.sampling import sample
from vpo_lab.train.tiny_model import train_tokenizer

FULL = "qwen3-1.7b"


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has a GPU and every package."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "find_spec", lambda name: object())
    monkeypatch.setattr(machine, "_too_old_gpu", lambda: "")
    monkeypatch.setattr(machine, "_check_server", lambda address: None)


# --- Which backend ----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_is_accepted_where_all_is_there(gpu, backend):
    check_backend(get_profile(FULL, {"policy.backend": backend, "sft.gold_steps": 30}))


@pytest.mark.parametrize(
    "overrides, broken, words",
    [
        ({"policy.backend": "jax"}, {}, "unknown policy.backend 'jax': choose one of scratch, transformers"),
        ({}, {"find_spec": lambda name: None}, "needs the package 'unsloth': pip install"),
        ({"policy.backend": "vllm"}, {"find_spec": lambda name: None}, "needs the package 'vllm'"),
        ({}, {"_too_old_gpu": lambda: "Tesla T4 has compute capability 7.5"}, "Tesla T4 .* want compute capability 8"),
        ({}, {"world_size": lambda: 2}, "unsloth trains on one GPU: for several add --set policy.backend=vllm"),
        ({"policy.vllm_server": "http://a:1"}, {}, "policy.vllm_server is for policy.backend = 'vllm'"),
    ],
)
def test_what_is_missing_is_one_line(gpu, monkeypatch, overrides, broken, words):
    for name, value in broken.items():
        monkeypatch.setattr(machine, name, value)
    with pytest.raises(LabError, match=words) as caught:
        check_backend(get_profile(FULL, overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("7.5, Tesla T4\n", "Tesla T4 has compute capability 7.5"),
        ("8.9, NVIDIA L4\n", ""),
        ("7.5, Tesla T4\n9.0, NVIDIA H100\n", ""),
        ("", ""),
        ("[N/A], something\n", ""),
    ],
)
def test_the_driver_is_asked_for_the_capability(monkeypatch, answer, expected):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=answer))
    assert machine._too_old_gpu() == expected


def test_no_server_is_one_line():
    with pytest.raises(LabError, match=r"127\.0\.0\.1:1"):
        machine._check_server("http://127.0.0.1:1")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_asked_past_the_proxy(monkeypatch, host):
    """TRL's client asks it too, by requests: that must not take the way through the proxy either."""
    import requests

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9" if "no" not in name.lower() else "example.org")
    server = HTTPServer(("127.0.0.1", 0), Healthy)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://{host}:{server.server_port}"
        machine._check_server(address)
        assert requests.get(f"{address}/health", timeout=10).status_code == 200
        assert "example.org" in os.environ["no_proxy"]
    finally:
        server.shutdown()


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_trl_is_told_how_to_sample():
    assert trl_arguments(get_profile("tiny"), 3) == {"use_vllm": False}
    unsloth = trl_arguments(get_profile(FULL), 3)
    assert unsloth == {"use_vllm": True, "vllm_importance_sampling_correction": False}
    profile = get_profile(FULL, {"policy.backend": "vllm", "policy.gpu_share": 0.4})
    beside = trl_arguments(profile, 3)
    assert beside["vllm_mode"] == "colocate" and beside["vllm_gpu_memory_utilization"] == 0.4
    assert beside["vllm_max_model_length"] == window(profile, 3) == 4096 + 3 * 512 + SLACK
    served = trl_arguments(profile.with_overrides({"policy.vllm_server": "http://a:8000"}), 3)
    assert served["vllm_mode"] == "server" and served["vllm_server_base_url"] == "http://a:8000"
    for arguments in (unsloth, beside, served):
        GRPOConfig(output_dir="x", use_cpu=True, bf16=False, **arguments)


# --- Unsloth ----------------------------------------------------------------------------------


def small_model(tokenizer):
    torch.manual_seed(0)
    config = small_config(
        vocab_size=len(tokenizer),
        num_hidden_layers=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    return Qwen3ForCausalLM(config)


@pytest.fixture
def unsloth(gpu, monkeypatch):
    """A module that loads a small model where Unsloth would load a large one; counts how often."""
    loads = []

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**arguments):
            loads.append(arguments)
            tokenizer = train_tokenizer(["a b c"])
            model = small_model(tokenizer)
            window = SimpleNamespace(max_model_len=arguments["max_seq_length"])
            config = SimpleNamespace(model_config=window)
            model.vllm_engine = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config))
            return model, tokenizer

        @staticmethod
        def get_peft_model(model, r, lora_alpha, lora_dropout, bias, target_modules, **_):
            return get_peft_model(
                model, LoraConfig(r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=target_modules)
            )

    module = ModuleType("unsloth")
    module.FastLanguageModel = FastLanguageModel
    monkeypatch.setitem(sys.modules, "unsloth", module)
    monkeypatch.setattr(machine, "_engine", {})
    monkeypatch.setattr("vpo_lab.train.policy._free_gpu", lambda: None)
    for name in ("UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_COMPILE_LOCATION", "VLLM_NO_USAGE_STATS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CUDA_VISIBLE_DEVICES", "VLLM_LOGGING_LEVEL", "UNSLOTH_VLLM_STANDBY"):
        monkeypatch.setenv(name, "0")
    return loads


def adapter_of(model) -> dict:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if "lora_" in name}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_one_engine_serves_all_stages_of_a_process(unsloth, tmp_path):
    profile = get_profile(FULL)
    model, tokenizer = load_policy(profile, None, None, seed=1)
    fresh = adapter_of(model)
    assert all(weight.abs().sum() == 0 for name, weight in fresh.items() if "lora_B" in name)
    assert tokenizer.padding_side == "left"
    for weight in model.parameters():  # a stage trains it and saves it
        if weight.requires_grad:
            torch.nn.init.normal_(weight)
    trained = adapter_of(model)
    model.save_pretrained(tmp_path)
    assert same(adapter_of(load_policy(profile, None, None, seed=1)[0]), fresh)  # the next stage starts afresh
    assert not same(adapter_of(load_policy(profile, None, None, seed=2)[0]), fresh)
    assert same(adapter_of(load_policy(profile, None, tmp_path, seed=1)[0]), trained)  # or from what was saved
    assert len(unsloth) == 1


def test_unsloth_gets_the_settings_of_the_profile(unsloth):
    load_policy(get_profile(FULL, {"policy.gpu_share": 0.4}), None, None, seed=0)
    (arguments,) = unsloth
    assert arguments["gpu_memory_utilization"] == 0.4 and arguments["max_lora_rank"] == 32
    assert arguments["max_seq_length"] == 4096 + 3 * 512 + SLACK
    assert arguments["fast_inference"] and arguments["load_in_4bit"] is False
    assert arguments["dtype"] is torch.bfloat16
    assert arguments["max_num_seqs"] == 192  # GRPO's step: else vLLM takes 32 at a time where the cache is small


@pytest.mark.parametrize(
    "overrides, wanted",
    [
        ({"rl.equal": "rollouts"}, 64),
        ({"rl.rollouts": 32, "rl.steps_per_generation": 2}, 192),
        ({"rl.steps_per_generation": 2}, 255),  # 256 would mean that Unsloth chooses
    ],
)
def test_vllm_decodes_all_rollouts_of_a_generation_side_by_side(overrides, wanted):
    assert machine.rollouts_at_once(get_profile(FULL, overrides)) == wanted


def test_another_model_in_the_same_process_is_refused(unsloth):
    load_policy(get_profile(FULL), None, None, seed=0)
    with pytest.raises(LabError, match="restart the kernel"):
        load_policy(get_profile("qwen3-0.6b"), None, None, seed=0)


def test_an_adapter_of_another_shape_is_refused(tmp_path):
    tokenizer = train_tokenizer(["a b c"])
    maps = {"q_proj": ["q_proj"], "all": ["q_proj", "v_proj"]}
    one, two = (get_peft_model(small_model(tokenizer), LoraConfig(r=4, target_modules=maps[n])) for n in maps)
    two.save_pretrained(tmp_path / "two")
    one.save_pretrained(tmp_path / "one")
    for model, folder in ((one, "two"), (two, "one")):
        with pytest.raises(LabError, match="is not one of this model"):
            set_adapter(model, tmp_path / folder, seed=0)


# --- Sampling by vLLM -------------------------------------------------------------------------


@pytest.fixture
def serving(monkeypatch):
    """A module vllm whose engine answers every prompt with "a", its end and one token more; notes what it is asked."""
    tokenizer = train_tokenizer(["a b c"])
    (a,), (b,) = tokenizer(["a", "b"], add_special_tokens=False)["input_ids"]
    noted = SimpleNamespace(tokenizer=tokenizer, a=a, b=b, calls=[], engines=[], closed=0)

    def generate(prompts, sampling_params, lora_request, use_tqdm):
        noted.calls.append((prompts, sampling_params, lora_request))
        if use_tqdm:  # as vLLM has it: a bar over what is handed over, another over what is done
            for _ in use_tqdm(prompts, desc="Adding requests"):
                pass
            bar = use_tqdm(total=len(prompts), desc="Processed prompts", dynamic_ncols=True, postfix="0 toks/s")
            for _ in prompts:
                bar.postfix = f"{1 / bar.format_dict['elapsed']} toks/s"
                bar.update(1)
            bar.close()
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(a, tokenizer.eos_token_id, b))]) for _ in prompts]

    class LLM:
        def __init__(self, **settings):
            folder = Path(settings["tokenizer"])
            noted.engines.append((settings, {path.name for path in folder.iterdir()}, dict(os.environ)))
            os.environ["RANK"] = "0"  # as vLLM leaves it
            self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.close))
            self.generate = generate

        def close(self):
            noted.closed += 1

    vllm, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    vllm.SamplingParams, vllm.LLM = SimpleNamespace, LLM
    request.LoRARequest = lambda *about: about
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    noted.generate = generate
    return noted


ASKED = dict(max_new_tokens=5, temperature=0.5, top_p=0.9, seed=7, batch=2)


def test_unsloths_vllm_is_given_all_prompts_at_once_with_a_seed_each_and_the_adapter(serving):
    model = SimpleNamespace(
        eval=lambda: None,
        fast_generate=serving.generate,
        load_lora=lambda folder, load_tensors: ("live", load_tensors),
    )
    told = []
    texts, lengths = sample(model, serving.tokenizer, ["b", "b", "a"], **ASKED, on_progress=told.append)
    assert texts == ["a", "a", "a"] and lengths == [2, 2, 2]  # the end counts, what follows it does not
    ((prompts, parameters, adapter),) = serving.calls  # a batch of 2 is for those who cannot schedule
    assert [prompt["prompt_token_ids"] for prompt in prompts] == [[serving.b], [serving.b], [serving.a]]
    assert [one.seed for one in parameters] == [7, 8, 9] and adapter == ("live", True)
    assert {(one.max_tokens, one.temperature, one.top_p) for one in parameters} == {(5, 0.5, 0.9)}
    assert told == [1, 2, 3, 3]  # one by one, as they are done, and at the end


@pytest.fixture
def plain(gpu, serving, monkeypatch, tmp_path):
    """load_policy for plain TRL with vLLM, of a small model in a folder, on a machine without a GPU."""
    small_model(serving.tokenizer).save_pretrained(tmp_path / "model")
    serving.tokenizer.save_pretrained(tmp_path / "model")

    def load(**overrides):
        settings = {"policy.backend": "vllm", "policy.model": str(tmp_path / "model"), "policy.gpu_share": 0.4}
        profile = get_profile(FULL, {**settings, **overrides})
        with monkeypatch.context() as patch:
            patch.setattr("vpo_lab.train.policy.check_backend", lambda profile: None)
            patch.setattr(torch.cuda, "is_available", lambda: False)
            return profile, *load_policy(profile, None, None, seed=0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("vpo_lab.train.sampling.ENGINE_PAYS", 3)
    monkeypatch.delenv("RANK", raising=False)
    return load


def test_plain_trl_starts_a_vllm_for_many_prompts_and_ends_it(plain, serving):
    profile, model, tokenizer = plain()
    texts, _ = sample(model, tokenizer, ["a", "b", "b"], **ASKED)
    assert texts == ["a", "a", "a"]
    ((settings, files, _),) = serving.engines
    assert settings["model"] == profile.policy.model and settings["dtype"] == "bfloat16"
    assert (settings["enable_lora"], settings["max_lora_rank"]) == (True, 32)
    assert settings["gpu_memory_utilization"] == 0.4 and settings["max_model_len"] == window(profile, 3)
    assert settings["distributed_executor_backend"] is None
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    ((prompts, parameters, adapter),) = serving.calls
    assert adapter == ("policy", 1, settings["tokenizer"]) and len(prompts) == 3
    assert [one.seed for one in parameters] == [7, 8, 9]
    assert serving.closed == 1 and "RANK" not in os.environ and not Path(settings["tokenizer"]).exists()


def test_a_vllm_of_ones_own_is_ended_when_sampling_fails(plain, serving):
    def fail(done):
        raise ValueError("no room")

    _, model, tokenizer = plain()
    with pytest.raises(ValueError, match="no room"):
        sample(
            model, tokenizer, ["a"] * 3, **ASKED, on_progress=lambda done: (_ for _ in ()).throw(ValueError("no room"))
        )
    assert serving.closed == 1


def test_without_lora_it_is_given_all_weights(plain, serving):
    _, model, tokenizer = plain(**{"policy.lora_rank": 0, "policy.dtype": "float32"})
    sample(model, tokenizer, ["a"] * 3, **ASKED)
    ((settings, files, _),) = serving.engines
    assert settings["model"] == settings["tokenizer"] and "model.safetensors" in files
    assert settings["enable_lora"] is False and serving.calls[0][2] is None


def test_each_of_several_processes_has_an_engine_as_trl_starts_it(plain, serving, monkeypatch):
    _, model, tokenizer = plain()
    monkeypatch.setattr(machine, "world_size", lambda: 2)
    ended = []
    with monkeypatch.context() as patch:
        patch.setattr(machine, "_shut_down", lambda llm: ended.append(llm))
        sample(model, tokenizer, ["a"] * 3, **ASKED)
    assert serving.engines[0][0]["distributed_executor_backend"] == "external_launcher" and len(ended) == 1


def test_for_a_few_prompts_no_engine_is_started(plain, serving):
    _, model, tokenizer = plain()
    texts, lengths = sample(model, tokenizer, ["a", "b"], **ASKED)
    assert len(texts) == 2 and not serving.engines and all(1 <= length <= 5 for length in lengths)


# --- Plain transformers on a CPU ---------------------------------------------------------------


@pytest.mark.parametrize(
    "can, dtype", [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": False}, torch.float32), ({}, torch.float32)]
)
def test_frozen_weights_are_bfloat16_on_a_cpu_that_computes_it_and_lora_stays_float32(
    tmp_path, monkeypatch, can, dtype
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
    tokenizer = train_tokenizer(["a b c"])
    small_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    profile = get_profile("qwen2.5-coder-0.5b", {"policy.model": str(tmp_path)})
    model, _ = load_policy(profile, None, None, seed=0)
    kinds = {trained: {w.dtype for w in model.parameters() if w.requires_grad == trained} for trained in (True, False)}
    assert kinds == {True: {torch.float32}, False: {dtype}}
    ids = torch.tensor([[1, 2, 3]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(w.grad.isfinite().all() for w in model.parameters() if w.requires_grad)


# --- vLLM's window ----------------------------------------------------------------------------


def with_window(tokens: int):
    model = small_model(train_tokenizer(["a b c"]))  # one layer, one head of 8: 32 bytes a token
    config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=tokens))
    model.vllm_engine = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config))
    return model


def test_a_share_too_small_for_the_window_is_refused_with_the_share_that_is_needed(monkeypatch):
    # 3,000 tokens of 32 bytes are 96,000 bytes, a tenth of this card.
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=960_000))
    machine.check_window(with_window(5760), 0.2, 5760)
    with pytest.raises(LabError, match=r"room for 2760 tokens.* 5760: set policy\.gpu_share=0\.31$"):
        machine.check_window(with_window(2760), 0.2, 5760)
    with pytest.raises(LabError, match="take a larger card"):
        machine.check_window(with_window(2760), 0.9, 5760)

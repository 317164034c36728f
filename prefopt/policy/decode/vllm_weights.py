"""How a vLLM server comes to the policy's weights."""

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from prefopt.policy.decode.vllm_server import START, VLLMServer
from prefopt.policy.policy import Policy
from prefopt.policy.saving import save_weights
from prefopt.support.errors import PrefoptError


class Transfer(Protocol):
    """Gives a server the weights of a policy; the main process does it."""

    def __call__(self, policy: Policy) -> str:
        """What the server calls the model that now has them."""
        ...


def transfer_to(server: VLLMServer, policy: Policy, accelerator: Accelerator) -> Transfer:
    """The way for a policy and a server.

    Raises:
        PrefoptError: the server was started in a way that leaves none.
    """
    if policy.has_adapter:
        return AdapterFiles(server)
    settings = server.settings()
    if settings.get("weight_transfer_config"):
        return BetweenGPUs(server, accelerator)
    tied = policy.causal.get_output_embeddings() is not None and policy.causal.config.tie_word_embeddings
    overrides = settings.get("model_config", {}).get("hf_overrides") or {}
    if tied and overrides.get("tie_word_embeddings") is not False:
        # vLLM 0.32 answers 200, and on CPUs goes on with the former head.
        raise PrefoptError(
            f"the vLLM server {server.address} would keep its former head, because the policy's head and embedding are one "
            f"weight: {START}"
        )
    return WholeFiles(server)


class AdapterFiles:
    """The adapter alone, through a folder. The server must see it: on another machine, set TMPDIR to a shared folder.

    Each version has a name and a folder of its own: vLLM knows what it has read under an adapter by these, and under the same
    ones would go on with what it has read by the former weights. Old ones are unloaded.
    """

    def __init__(self, server: VLLMServer):
        self.server = server
        self.folder = Path(tempfile.mkdtemp(prefix="prefopt-adapter-"))
        self.loaded: list[str] = []
        weakref.finalize(self, _leave, server, self.loaded, self.folder)

    def __call__(self, policy: Policy) -> str:
        """Load this version, and unload the one before.

        Raises:
            PrefoptError: it is no adapter on a model that is on disk, or the server did not take it.
        """
        name = f"prefopt-{uuid4().hex}"
        folder = self.folder / name
        save_weights(policy.model, folder)
        if not (folder / "adapter_config.json").is_file():
            raise PrefoptError(
                "a vLLM server takes adapters on the model that it serves, and this one is on weights that are nowhere on disk "
                "(another adapter's, merged): `prefopt export` the model below, serve it, and name it in policy.model"
            )
        self.server.load_adapter(name, folder)
        self.loaded.append(name)
        if len(self.loaded) > 1:
            before = self.loaded.pop(0)
            self.server.unload_adapter(before)
            shutil.rmtree(self.folder / before, ignore_errors=True)
        return name


def _leave(server: VLLMServer, loaded: list[str], folder: Path) -> None:
    """Leave a server as it was found, at the end of the process at the latest."""
    for name in loaded:
        server.unload_adapter(name)
    shutil.rmtree(folder, ignore_errors=True)


class WholeFiles:
    """All weights, through a folder, which the server must see: on another machine, set TMPDIR to a shared one."""

    def __init__(self, server: VLLMServer):
        self.server = server

    def __call__(self, policy: Policy) -> str:
        """Let the server read them in the place of its own."""
        causal: Any = policy.causal
        with tempfile.TemporaryDirectory(prefix="prefopt-weights-") as folder:
            causal.save_pretrained(folder, max_shard_size="1TB")  # one file, beside which another is read
            head = causal.get_output_embeddings()
            if head is not None and causal.config.tie_word_embeddings:
                name = next(name for name, module in causal.named_modules() if module is head)
                save_file({f"{name}.weight": head.weight.detach().clone()}, Path(folder) / "model-head.safetensors")
            self.server.reload(Path(folder))
        return self.server.base


class BetweenGPUs:
    """All weights by NCCL, through TRL 1.16's client of vLLM's weight transfer. Written after both, never run on GPUs.

    Raises:
        PrefoptError: TRL or vLLM are not installed, or there is no GPU.
    """

    def __init__(self, server: VLLMServer, accelerator: Accelerator):
        self.server, self.device = server, accelerator.device
        if not torch.cuda.is_available():
            raise PrefoptError(
                f"the vLLM server {server.address} takes weights from GPUs alone (--weight-transfer-config), and this run is on "
                f"{accelerator.device}: {START}"
            )
        try:
            from trl.generation.vllm_client import VLLMClient
        except ImportError as error:
            raise PrefoptError(
                f"weights between GPUs need TRL and vLLM ({error}): pip install 'prefopt-research[vllm]', or start the server "
                "without --weight-transfer-config"
            ) from error
        with server.asked_to("make a connection for weights"):
            self.client: Any = VLLMClient(base_url=server.address)
            self.client.init_communicator(accelerator.device)

    def __call__(self, policy: Policy) -> str:
        """Send them."""
        with self.server.asked_to("take over the policy's weights"):
            named = list(policy.causal.named_parameters())
            metadata = [(name, str(weight.dtype).removeprefix("torch."), list(weight.shape)) for name, weight in named]
            # One by one, as those of a sharded policy are whole on the CPU.
            self.client.update_named_params(metadata, ((name, w.detach().to(self.device)) for name, w in named))
            self.server.forget()
        return self.server.base

"""A program for two processes that prints the gradients of a prompt under DDP or FSDP2."""

import json
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import random_text

how, method = sys.argv[1:]
torch.set_num_threads(1)
plugin = FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=True) if how == "fsdp" else None
accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
torch.manual_seed(0)
model = zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=4)
for parameter in model.prompts.parameters():
    parameter.data.add_(0.1 * torch.randn_like(parameter))
optimizer = torch.optim.SGD(model.prompts.parameters(), lr=0.0)
model, optimizer = accelerator.prepare(model, optimizer)
ids = random_text(8, 40 + accelerator.process_index)
loss = model(input_ids=ids, labels=ids).loss
accelerator.backward(loss)
gradients = {}
for name, parameter in model.named_parameters():
    if parameter.grad is not None:
        gradient = parameter.grad
        gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        gradients[name.removeprefix("module.")] = gradient.flatten().tolist()
if accelerator.is_main_process:
    print(json.dumps({"loss": loss.item(), "processes": accelerator.num_processes, "gradients": gradients}))

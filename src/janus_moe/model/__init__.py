"""What a model is and computes, in two halves: attention with all that is dense, and experts.

source           name -> folder; `source_files` finds its files
config           folder -> ModelSpec
tensors          ModelSpec -> the tensors that a checkpoint must have
checkpoint       folder -> checked tensors; `safetensors_header` reads the header of one file
loading          tensors -> matrices for computing
memory           bytes that an instance holds, before anything is read
attention_block  the attention half with its weights
attention_kinds  kind of attention -> `gqa`, `mla`; `rotation` has the rotary embedding
kv_cache         paged memory of past tokens
mlp              dense layers and shared experts
expert_block     the expert half: gates, and experts in slots
slot_storage     the memory of slots
piecewise        experts read into slots of a running model, a few rows at a time

It knows nothing of processes, transports, requests or placement.
"""

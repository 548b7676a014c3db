"""What a model is and computes, in two halves: attention with all that is dense, and experts.

    source           name -> folder               config         folder -> ModelSpec
    tensors          ModelSpec -> tensor list     checkpoint     folder -> checked tensors
    attention_block, expert_block                 the halves of a model with their weights
    attention_kinds  kind -> gqa, mla             loading        tensors -> matrices for computing

It knows nothing of processes, transports, requests or placement.
"""

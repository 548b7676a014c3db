"""What a model is and computes, in two halves: attention with all that is dense, and experts.

    source      name -> folder              config, families   folder -> ModelSpec
    tensors     ModelSpec -> tensor list    checkpoint         folder -> checked tensors
    attention_block, expert_block           the halves; monolithic puts them together

Knows nothing of processes, transports, requests or placement.
"""

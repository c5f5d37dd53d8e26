"""Networks: their sizes, their layers, and what they take and give.

Used by others: `Block`, `DraftAdapter`, `ExpertsConfig`, `FrequencyFactors`, `GatedFeedForward`,
`GeluTransformer`, `LATENT_TABLE`, `LatentConfig`, `LatentDefaults`, `LatentInput`, `LatentRows`,
`LinearScaling`, `Llama3Scaling`, `MOST_REFINE_STEPS`, `Network`, `NetworkConfig`, `NetworkInput`,
`ORDERS`, `Parts`, `Placement`, `QueryScale`, `RotaryConfig`, `RouterScore`, `TensorNames`,
`TensorReader`, `TensorStore`, `Transformer`, `UNCERTAINTIES`, `YarnScaling`,
`build_gelu_transformer`, `build_transformer`, `calibration_ids`, `parse_latent`,
`quantize_network`.
"""

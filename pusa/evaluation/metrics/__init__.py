"""The ten dimensions of VBench-I2V, one file each. Networks stand in pusa/evaluation/backbones."""

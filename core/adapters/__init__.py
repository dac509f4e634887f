"""Mixtures of LoRA experts: one PEFT tuner, described by cells of words.

Importing this package imports no torch. ``cells`` says what a mixture is, ``words`` what it is made of and what each
word costs, ``methods`` which published mixtures are presets of them; ``attach`` (torch) puts one on a model.
"""

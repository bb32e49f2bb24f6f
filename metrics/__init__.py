"""How close a super-resolved image is to its reference: pixel fidelity and perceptual distances."""

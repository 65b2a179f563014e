"""The atoms job: structures in, energies, forces and stresses out."""

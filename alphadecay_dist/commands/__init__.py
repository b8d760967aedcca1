"""The commands of ``alphadecay``: a file each."""

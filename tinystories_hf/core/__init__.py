"""What every room uses: errors, files, C++, devices, processes, the run record.

Imports no other room of the package.
"""

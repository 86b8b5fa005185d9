"""What every other folder uses: errors, files, C++, devices, processes, the run record.

Imports no other folder of the package.
"""

//! Documents out of files, folders, archives, addresses and standard input.

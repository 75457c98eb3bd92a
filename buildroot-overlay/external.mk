# Weft has no packages of Buildroot's own kind: the folders of this tree are
# root file system overlays (BR2_ROOTFS_OVERLAY), and the device binary is built
# by "make host" of the repository.

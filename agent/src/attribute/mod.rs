//! Who wrote: from a cgroup to a container, a Pod and an image.

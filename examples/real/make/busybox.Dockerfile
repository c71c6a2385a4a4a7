FROM c AS build
ADD busybox_1.35.0.orig.tar.bz2 /
WORKDIR /busybox-1.35.0
# The banner has a time in it. busybox's kconfig takes it from SOURCE_DATE_EPOCH, which Kiln sets.
RUN make defconfig && make -j$(nproc) busybox && install -D busybox /out/bin/busybox

FROM scratch
COPY --from=build /out /
CMD ["/bin/busybox"]

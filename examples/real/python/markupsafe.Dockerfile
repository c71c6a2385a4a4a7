FROM python AS build
ADD markupsafe_2.1.2.orig.tar.gz /
RUN pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /out /MarkupSafe-2.1.2

FROM scratch
COPY --from=build /out /wheels/
CMD ["/none"]

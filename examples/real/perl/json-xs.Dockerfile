FROM perl AS build
ADD libjson-xs-perl_4.040.orig.tar.gz /
WORKDIR /JSON-XS-4.04
RUN perl Makefile.PL INSTALLDIRS=vendor < /dev/null && make -j$(nproc) && make install DESTDIR=/out

FROM scratch
COPY --from=build /out /
CMD ["/none"]

FROM c AS build
ADD nginx_1.22.1.orig.tar.gz /
WORKDIR /nginx-1.22.1
RUN ./configure --prefix=/usr/share/nginx --sbin-path=/usr/sbin/nginx && make -j$(nproc) && \
    make install DESTDIR=/out

FROM scratch
COPY --from=build /out /
CMD ["/usr/sbin/nginx", "-V"]
